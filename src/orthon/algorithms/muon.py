"""Muon: the polar factor of the momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.lr_scale import lr_factor
from orthon.algorithms.momentum import updated_momentum
from orthon.algorithms.options import Group, flag, number, structural
from orthon.algorithms.polar_factor import POLAR_OPTIONS, check_route, dtype_of_polar, goes_by, polar_cost, polar_factor
from orthon.algorithms.rule import MATRIX_OPTIONS, Rule
from orthon.algorithms.state import Entries, Entry
from orthon.sharding import Layout, Step


def muon(
    batch: Batch, group: Group, normalize: Callable[[Tensor, Batch, Group], Step[Tensor]] | None = None
) -> Step[None]:
    """Make one step of Muon on matrices X (b, m, n) with momentum M (b, m, n).

    M ← momentum·M + G                        with ema: momentum·M + (1 − momentum)·G
    U ← momentum·M + G                        with ema: momentum·M + (1 − momentum)·G; without nesterov: M
    O ← polar(U)
    X ← (1 − lr·weight_decay)·X − lr·scale·O
    """
    dtype = dtype_of_polar(batch.state[0]["momentum"].dtype, batch.layout, group)
    U = updated_momentum(batch, group, dtype)  # (b, m, n)
    O = yield from polar_factor(U, batch, group)
    if normalize is not None:
        O = yield from normalize(O, batch, group)
    lr, rate = batch.rates(group)
    scale, cautious = lr_factor(group["lr_scale"], *batch.layout.shape), group["cautious_weight_decay"]
    batch.decay_and_subtract(O.unbind(), rate=rate, by=lr * scale, cautious=cautious)


def entries(shape: tuple[int, ...], group: Group) -> Entries:  # noqa: ARG001
    """Return a zero momentum (m, n)."""
    return {"momentum": Entry(dtype=group["state_dtype"])}


def temporaries(layout: Layout, group: Group, dtype: torch.dtype) -> float:
    """Return the bytes of five matrices: what is orthonormalized, and what the polar factor of a square one takes."""
    return 5.0 * math.prod(layout.largest) * dtype_of_polar(group["state_dtype"] or dtype, layout, group).itemsize


OPTIONS = {
    **MATRIX_OPTIONS,
    **POLAR_OPTIONS,
    "momentum": number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
    "nesterov": flag(True),
    "ema": structural(flag(False)),
}

RULE = Rule(
    name="muon",
    options=OPTIONS,
    entries=entries,
    update=muon,
    for_matrices=True,
    temporaries=temporaries,
    cost=polar_cost,
    route=goes_by,
    check_layout=check_route,
    polar_dtype=dtype_of_polar,
)
