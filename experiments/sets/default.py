"""Which options should Dion have by default?"""

from experiments.entries import Experiment, crossed
from experiments.sets.contenders import MAIN, QUARTER, SIXTEENTH, changed, dion_with_tail, with_and_without_tail
from experiments.sets.settings import BATCH_32K, DEMO, LONG, SIZE_4M

_LONGER = [changed(dion_with_tail(rank), "tail 1", tail=1.0) for rank in (QUARTER, SIXTEENTH)]

SET = Experiment(
    name="default",
    question="Is Dion with a tail better than the paper's, or as good, in every setting?",
    entries=crossed((*MAIN, *_LONGER), (DEMO, BATCH_32K, SIZE_4M, LONG)),
    pairs=(
        *with_and_without_tail(QUARTER, SIXTEENTH),
        *((longer.name, dion_with_tail(rank).name) for longer, rank in zip(_LONGER, (QUARTER, SIXTEENTH), strict=True)),
    ),
    target="AdamW",
)
