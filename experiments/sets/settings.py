"""Settings that several sets share, so that they share the runs."""

from experiments.entries import Setting

DEMO = Setting(name="demo", seeds=(0, 1, 2, 3, 4))

# Batches in tokens of 256 each sequence. With larger ones fewer steps reach the same loss.
BATCH_8K = Setting(name="8k tokens", batch=32, steps=160)
BATCH_32K = Setting(name="32k tokens", batch=128, steps=80)
BATCH_128K = Setting(name="128k tokens", batch=512, steps=32, seeds=(0,))

SIZE_4M = Setting(name="4M", size="4M")
SIZE_20M = Setting(name="20M", size="20M", batch=4, steps=150, seeds=(0,))

LONG = Setting(name="momentum 0.95, 900 steps", momentum=0.95, steps=900)
