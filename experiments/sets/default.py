"""Which options should Dion have by default?"""

from experiments.entries import Experiment, crossed
from experiments.sets.contenders import MAIN, QUARTER, SIXTEENTH, with_and_without_tail
from experiments.sets.settings import BATCH_32K, DEMO, LONG, SIZE_4M

SET = Experiment(
    name="default",
    question="Is Dion with a tail better than the paper's, or as good, in every setting?",
    entries=crossed(MAIN, (DEMO, BATCH_32K, SIZE_4M, LONG)),
    pairs=with_and_without_tail(QUARTER, SIXTEENTH),
    target="AdamW",
)
