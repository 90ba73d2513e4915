"""Which part of Dion is worth what?"""

from dataclasses import replace
from fractions import Fraction
from itertools import chain

from experiments.entries import Contender, Experiment, crossed
from experiments.sets.contenders import MUON, QUARTER, SIXTEENTH, changed, dion_of_the_paper, dion_with_tail
from experiments.sets.settings import BATCH_32K, DEMO

# So many power iterations that the subspace is the leading one of the momentum.
EXACT = 8


def _of_the_paper(base: Contender) -> list[Contender]:
    """Return the paper's Dion, and the same with one thing changed."""
    return [
        base,
        changed(base, "no error feedback", residual_momentum=None),
        changed(base, "2 power iterations", power_iterations=2),
        changed(base, f"{EXACT} power iterations", power_iterations=EXACT),
        changed(base, "right factor by QR", right_factor="orthonormalize"),
        changed(base, "right factor polar", right_factor="polar"),
    ]


def _other_tails(rank: Fraction) -> list[Contender]:
    """Return Dion with a tail, and with others."""
    return [dion_with_tail(rank), *(dion_with_tail(rank, tail) for tail in (0.0, 0.25, 0.5, 1.0, 1.4))]


def _residuals(base: Contender) -> list[Contender]:
    """Return Dion with a tail where what is left out fades as all of M, by 0.2 a step, and where it fades otherwise."""
    return [
        changed(base, "without Nesterov", nesterov=False),
        changed(base, "residual fades by 0.1", nesterov=False, residual_momentum=0.9),
        changed(base, "error feedback", nesterov=False, residual_momentum=1.0),
    ]


def _with_tail(base: Contender) -> list[Contender]:
    """Return Dion with a tail, and the same with one thing changed."""
    return [
        base,
        changed(base, "without Nesterov", nesterov=False),
        changed(base, "columns normalized", right_factor="normalize"),
        changed(base, "right factor polar", right_factor="polar"),
        changed(base, f"{EXACT} power iterations", power_iterations=EXACT),
        changed(base, "P on the long side", orthonormal_side="long"),
    ]


_GROUPS = [
    _of_the_paper(dion_of_the_paper(QUARTER)),
    _other_tails(QUARTER),
    _with_tail(dion_with_tail(QUARTER)),
    _residuals(dion_with_tail(QUARTER)),
    _of_the_paper(dion_of_the_paper(SIXTEENTH)),
    _other_tails(SIXTEENTH),
    _residuals(dion_with_tail(SIXTEENTH)),
]

_EVERY = {each.name: each for each in (MUON, *chain(*_GROUPS))}

_TAIL = dion_with_tail(QUARTER)
_LONGER = [dion_with_tail(QUARTER, tail) for tail in (1.0, 1.4)]
_IN_LARGE_BATCHES = (
    _TAIL,
    *_LONGER,
    *(changed(tail, "2 power iterations", power_iterations=2) for tail in (_TAIL, _LONGER[0])),
)

SET = Experiment(
    name="ablation",
    question="Which part of Dion is worth what?",
    entries=(
        *crossed((MUON, *_IN_LARGE_BATCHES), (BATCH_32K,)),
        *crossed(_EVERY.values(), (replace(DEMO, seeds=(0, 1, 2)),)),
    ),
    pairs=tuple((each.name, base.name) for base, *others in _GROUPS for each in others),
    published=(
        "Dion's authors, 120M, with and without error feedback: 3.307 and 3.329 at rank 1/2, 3.349 and 3.423 at 1/4; "
        "one power iteration and the exact subspace: 3.289 and 3.293 at full rank, 3.343 and 3.336 at 1/4."
    ),
)
