"""A finished model in use: predict, the Hub, the demo.

Knows nothing of training. Read `predict`, then `hub` and `demo`.
"""
