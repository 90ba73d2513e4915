"""Does a low rank lose less in wider models?"""

from dataclasses import replace

from experiments.entries import Experiment, crossed
from experiments.sets.contenders import MAIN, QUARTER, SIXTEENTH, with_and_without_tail
from experiments.sets.settings import DEMO, SIZE_4M, SIZE_20M

SET = Experiment(
    name="size",
    question="Does a low rank lose less in wider models?",
    entries=crossed(MAIN, (replace(DEMO, name="1M"), SIZE_4M, SIZE_20M)),
    pairs=with_and_without_tail(QUARTER, SIXTEENTH),
    target="AdamW",
    published="Dion's authors, steps of Adam over those of Dion to one loss: 1.78 at 120M to 1.50 at 3B.",
)
