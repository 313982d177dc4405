"""What saves a phase from a crash: checkpoints, resuming, rollback, interruption, failures."""
