"""Does a low rank lose less as the batch grows?"""

from dataclasses import replace
from fractions import Fraction

from experiments.entries import Experiment, crossed
from experiments.sets.contenders import (
    ADAMW,
    DION2,
    DION3,
    MAIN,
    MUON,
    dion_of_the_paper,
    dion_with_tail,
    with_and_without_tail,
)
from experiments.sets.settings import BATCH_8K, BATCH_32K, BATCH_128K, DEMO

_RANKS = (Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 16))
_FULL_RANK = dion_of_the_paper(Fraction(1))  # nothing is left out, and there is no tail
_EVERY = (
    ADAMW,
    MUON,
    _FULL_RANK,
    *(make(rank) for rank in _RANKS for make in (dion_of_the_paper, dion_with_tail)),
    DION2,
    DION3,
)
_FEW = (*MAIN, _FULL_RANK, DION2, DION3)

SET = Experiment(
    name="batch",
    question="Does a low rank lose less as the batch grows, and a whole update less than Muon's?",
    entries=(
        *crossed(_EVERY, (replace(DEMO, name="2k tokens", seeds=(0, 1, 2)), BATCH_8K, BATCH_32K)),
        *crossed(_FEW, (BATCH_128K,)),
    ),
    pairs=with_and_without_tail(*_RANKS),
    target="AdamW",
    published=(
        "Dion's authors, steps to loss 3.4 of a small GPT from batch 256 to 16384: Adam 13850 to 1650, "
        "Muon 7800 to 800, Dion at full rank 8200 to 650, 1/4 10500 to 1000, 1/16 14300 to 2500."
    ),
)
