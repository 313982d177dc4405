"""Which images, with which labels, as pixels: sources, tables, targets, splits, decoding, audit.

Knows nothing of backbones. Light: no torch at module level. Read `sources`, then `splits` and
`decoding`, then `image_set`.
"""
