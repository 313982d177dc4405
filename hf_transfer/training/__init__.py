"""The Trainer, and a phase from its start to its proof.

Knows nothing of YAML, cards or argparse. Two closets: `recovery` (checkpoints, resuming, rollback,
interruption) and `machine` (precision, sharding, batch statistics). Read `trainer` first, then
`phase_run`; for images without labels `pretext_loss` and `watching`.
"""
