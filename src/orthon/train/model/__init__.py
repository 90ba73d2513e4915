"""The LLaMA to train, and how many processes share it."""
