"""What a training step reads: images, varied; or features, computed once and replayed.

Knows nothing of optimizers or schedules. Read `model_input`, `augmentation` and `batches`, then
`features`, which leads to `cut` (where a network is cut; `passage` watches it up to there),
`extraction` (what arrives there, computed once) and `replay` (the network from there on).
`pretexts` makes pictures and targets from images without labels.
"""
