"""What a training step reads: images, varied; or features, computed once and replayed.

Knows nothing of optimizers or schedules. Read `augmentation` and `batches`, then `features`, which
leads to `cut`, `replay` and `extraction`.
"""
