"""A finished model in use: load, predict, evaluate, embed, export, the Hub, the demo.

Knows nothing of training. Read `pictures` (what counts as images), `predict` and `answers`, then
`evaluate`, `embed` and `export`, which `load` makes methods; last `hub`, `published` and `demo`.
"""
