"""The kinds of work that a rule can do, with all that the step asks about each of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from orthon.algorithms.adjusted_lr import ADJUST_LR_FNS
from orthon.algorithms.options import (
    Group,
    Option,
    choice,
    flag,
    float_dtype_or_none,
    integer,
    own,
    rate,
    structural,
)
from orthon.sharding import Layout
from orthon.sharding.matrix_view import MatrixView


def _is_view(value: object) -> bool:
    return value is None or isinstance(value, MatrixView | Mapping)


# What every rule takes.
COMMON_OPTIONS: Mapping[str, Option] = {
    "lr": rate(0.01),
    "weight_decay": rate(0.01),
    "maximize": flag(False),
    "cautious_weight_decay": flag(False),
    "capturable": own(flag(False)),
}

# What rules for matrices take beside.
MATRIX_OPTIONS: Mapping[str, Option] = {
    **COMMON_OPTIONS,
    "adjust_lr_fn": choice(*ADJUST_LR_FNS),
    "state_dtype": float_dtype_or_none(),
    "seed": integer(0, at_least=0),
    "view": structural(Option(None, "a MatrixView, a mapping of its attributes, or None", _is_view)),
}


class Effort(NamedTuple):
    """What the work on one matrix takes.

    Attributes:
        products: floating-point operations of large products: those of the owner, or of the busiest rank on shards.
        factoring: floating-point operations of factorizations of small matrices. All ranks share them on shards.
        numbers: how many numbers each rank sends, on average.
    """

    products: float
    factoring: float = 0.0
    numbers: float = 0.0


@dataclass(frozen=True)
class Work:
    """What the step asks about a rule's work. The answers belong together, so that a rule takes one kind as a whole.

    The answers here are those of `Elementwise`. The argument `options` is always one param group.

    Attributes:
        takes_matrices: whether the rule takes matrices alone, in batches of one shape.
        options: what a param group may set for every rule of this kind.
        needs: the keys of the state that this kind of work reads and writes by itself.
        copies_divide_matrices: whether of ranks with copies, on the route "shards", each works on some of the matrices.
    """

    takes_matrices: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = COMMON_OPTIONS
    needs: ClassVar[tuple[str, ...]] = ()
    copies_divide_matrices: ClassVar[bool] = False

    def check_options(self, options: Group, where: str) -> None:
        """Raise a ValueError that `where` starts, for options of which each is allowed, but not all together."""

    def check_layout(self, layout: Layout, options: Group) -> None:
        """Raise a ValueError for matrices that lie so that the rule cannot update them."""

    def update_rank(self, shape: tuple[int, ...], options: Group) -> int | None:  # noqa: ARG002
        """Return the rank of the update of a matrix, or None if it is not low."""
        return None

    def has_tail(self, shape: tuple[int, ...], options: Group) -> bool:  # noqa: ARG002
        """Return whether an update of low rank has a part beside that, which is of the rank that is left."""
        return False

    def temporaries(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:  # noqa: ARG002
        """Return about how many bytes a step takes for one matrix, beside weights, gradients and state.

        Args:
            layout: of the matrix.
            options: of its group.
            dtype: of the weight.
        """
        return 0.0

    def compresses(self, layout: Layout, options: Group) -> bool:  # noqa: ARG002
        """Return whether the rule averages fewer numbers over replicas than a gradient has, where these differ."""
        return False

    def routes(self, layout: Layout, options: Group) -> tuple[str, ...]:  # noqa: ARG002
        """Return the ways in which several ranks may work on matrices that lie so, and that the options allow.

        "owners": each matrix is worked on whole by one of them. "shards": all of them work on their shards. None if
        the rule has no such ways.
        """
        return ()

    def effort(self, route: str, layout: Layout, options: Group) -> Effort:  # noqa: ARG002
        """Return what one matrix takes by one of `routes`, or "alone"."""
        raise AssertionError(f"a rule that takes no matrices has no route {route!r}")

    def owned_bytes(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:  # noqa: ARG002
        """Return about how many bytes the owner of one whole matrix takes for it.

        Args:
            layout: of the matrix.
            options: of its group.
            dtype: of the weight.
        """
        return 0.0

    def polar_dtype(self, storage: torch.dtype, layout: Layout, options: Group) -> torch.dtype | None:  # noqa: ARG002
        """Return the dtype of polar factors, where momentum is stored as `storage`; None if the rule has none."""
        return None


@dataclass(frozen=True)
class Elementwise(Work):
    """Each number of a parameter is updated by itself, or at least on each rank alone. Parameters have any shape."""
