"""The optimizers of the sets. Their options are written out, so that other defaults change no data."""

from dataclasses import replace
from fractions import Fraction

from experiments.entries import Contender
from orthon.train.settings.key_values import Scalar

ADAMW = Contender(name="AdamW", optimizer="adamw", lr=0.003)
MUON = Contender(name="Muon", optimizer="muon", lr=0.04, options={"nesterov": True})
NORMUON = Contender(name="NorMuon", optimizer="normuon", lr=0.04, options={"nesterov": True})
DION2 = Contender(name="Dion2 1/4", optimizer="dion2", lr=0.08, fraction=1 / 4)
DION3 = Contender(name="Dion3 1/4", optimizer="dion3", lr=0.08, fraction=1 / 4)

# The tail of `Dion` by default.
TAIL = 0.7

# The paper's Dion (arXiv 2504.05295): what the low-rank part leaves out has no part in the update and stays in M.
PAPER: dict[str, Scalar] = {
    "right_factor": "normalize",
    "tail": 0.0,
    "residual_momentum": 1.0,
    "nesterov": False,
}

# Beside a tail: what the low-rank part leaves out is a part of the update, and fades as all of M does.
_WITH_TAIL: dict[str, Scalar] = {
    "right_factor": "orthonormalize",
    "residual_momentum": None,
    "nesterov": True,
}


def dion_of_the_paper(fraction: Fraction) -> Contender:
    """Return the paper's Dion of a rank."""
    return Contender(
        name=f"paper's Dion {fraction}", optimizer="dion", lr=0.04, fraction=float(fraction), options=PAPER
    )


def dion_with_tail(fraction: Fraction, tail: float = TAIL) -> Contender:
    """Return Dion as it is by default, or with another tail, of a rank below the full one."""
    options = {**_WITH_TAIL, "tail": tail}
    name = f"Dion {fraction}" + ("" if tail == TAIL else f", tail {tail:g}")
    return Contender(name=name, optimizer="dion", lr=0.04, fraction=float(fraction), options=options)


def changed(contender: Contender, name: str, **options: Scalar) -> Contender:
    """Return a contender with some options changed, and with a name that tells how."""
    return replace(contender, name=f"{contender.name}, {name}", options={**contender.options, **options})


QUARTER, SIXTEENTH = Fraction(1, 4), Fraction(1, 16)

# Those between which someone chooses.
MAIN = (
    ADAMW,
    MUON,
    *(make(rank) for make in (dion_with_tail, dion_of_the_paper) for rank in (QUARTER, SIXTEENTH)),
)


def with_and_without_tail(*ranks: Fraction) -> tuple[tuple[str, str], ...]:
    """Return the names of Dion with a tail and of the paper's, for the `pairs` of a set."""
    return tuple((dion_with_tail(rank).name, dion_of_the_paper(rank).name) for rank in ranks)
