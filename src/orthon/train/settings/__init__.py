"""Every setting of the trainer, and how settings are read and checked."""
