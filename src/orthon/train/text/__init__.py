"""The text to train on: where it comes from, and the order in which a run reads it."""
