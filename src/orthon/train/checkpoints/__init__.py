"""The checkpoints of a run: how they are written, found, checked and loaded."""
