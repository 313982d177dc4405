"""A finished model in use: load, predict, evaluate, embed, explain, export, the Hub.

Knows nothing of training. Read `pictures` (what counts as images), `predict` and `answers`, then
`evaluate`, `embed`, `explain` and `export`, which `load` makes methods; last `hub` and `published`.
"""
