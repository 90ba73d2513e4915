"""Does a low rank lose less as the batch grows?"""

from dataclasses import replace
from fractions import Fraction

from experiments.entries import Experiment, crossed
from experiments.sets.contenders import DION2, DION3, MAIN, dion_of_the_paper, dion_with_tail
from experiments.sets.settings import BATCH_8K, BATCH_32K, BATCH_128K, DEMO

# At the full rank nothing is left out, and there is no tail.
_OTHER_RANKS = (
    dion_of_the_paper(Fraction(1)),
    *(make(Fraction(1, part)) for part in (2, 8) for make in (dion_of_the_paper, dion_with_tail)),
)
_FEW = (*MAIN, DION2, DION3)

SET = Experiment(
    name="batch",
    question="Does a low rank lose less as the batch grows, and a whole update less than Muon's?",
    entries=(
        *crossed((*_FEW, *_OTHER_RANKS), (replace(DEMO, name="2k tokens", seeds=(0, 1, 2)), BATCH_8K, BATCH_32K)),
        *crossed((*_FEW, _OTHER_RANKS[0]), (BATCH_128K,)),
    ),
    target="AdamW",
    published=(
        "Dion's authors, steps to loss 3.4 of a small GPT from batch 256 to 16384: Adam 13850 to 1650, "
        "Muon 7800 to 800, Dion at full rank 8200 to 650, 1/4 10500 to 1000, 1/16 14300 to 2500."
    ),
)
