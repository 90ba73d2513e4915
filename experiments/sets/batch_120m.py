"""Does a low rank lose less as the batch grows, in a model of 120M weights? For a GPU."""

from experiments.entries import Experiment, Setting, crossed
from experiments.sets.contenders import MAIN, QUARTER, SIXTEENTH, with_and_without_tail

_SMALL = Setting(name="33k tokens", size="120M", batch=32, steps=150, seeds=(0,), precision="bf16")
_LARGE = Setting(name="262k tokens", size="120M", batch=256, steps=50, seeds=(0,), precision="bf16")

SET = Experiment(
    name="batch-120m",
    question="Does a low rank lose less as the batch grows, in a model of 120M weights?",
    entries=crossed(MAIN, (_SMALL, _LARGE)),
    pairs=with_and_without_tail(QUARTER, SIXTEENTH),
    target="AdamW",
    device="cuda",
)
