"""Muon: the polar factor of the momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon)."""

from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.momentum import MOMENTUM_OPTIONS, updated_momentum
from orthon.algorithms.options import Group
from orthon.algorithms.rule import Rule
from orthon.algorithms.state import Entries, Entry
from orthon.algorithms.whole_matrix import WholeMatrix, dtype_of_polar, polar_factor
from orthon.sharding import Step


def muon(batch: Batch) -> Step[None]:
    """Make one step of Muon on matrices X (b, m, n) with momentum M (b, m, n).

    M ← momentum·M + G                        with ema: momentum·M + (1 − momentum)·G
    U ← momentum·M + G                        with ema: momentum·M + (1 − momentum)·G; without nesterov: M
    O ← polar(U)
    X ← (1 − lr·weight_decay)·X − lr·scale·O
    """
    O = yield from direction(batch)
    batch.descend(O)


def direction(batch: Batch) -> Step[Tensor]:
    """Return O, the polar factor of the updated momentum, (b, m, n)."""
    stored = batch.state[0]["momentum"].dtype
    dtype = dtype_of_polar(stored, batch.layout, batch.options)
    return (yield from polar_factor(updated_momentum(batch, dtype), batch))


def entries(shape: tuple[int, ...], options: Group) -> Entries:  # noqa: ARG001
    """Return a zero momentum (m, n)."""
    return {"momentum": Entry(dtype=options["state_dtype"])}


RULE = Rule(name="muon", update=muon, entries=entries, work=WholeMatrix(), options=MOMENTUM_OPTIONS)
