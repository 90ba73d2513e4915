"""Which momentum suits which length of a run?"""

from experiments.entries import Experiment, Setting, crossed
from experiments.sets.contenders import (
    MUON,
    QUARTER,
    dion_of_the_paper,
    dion_with_tail,
    with_and_without_tail,
)
from experiments.sets.settings import LONG

_THREE = (MUON, dion_of_the_paper(QUARTER), dion_with_tail(QUARTER))
_SETTINGS = [
    Setting(name=f"momentum {momentum}, {steps} steps", momentum=momentum, steps=steps)
    for steps in (300, LONG.steps)
    for momentum in (0.8, 0.9, 0.95)
]

SET = Experiment(
    name="momentum",
    question="Which momentum suits which length of a run, and does a low rank lose less in a longer one?",
    entries=crossed(_THREE, _SETTINGS),
    pairs=with_and_without_tail(QUARTER),
)
