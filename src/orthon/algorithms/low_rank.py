"""What the step asks about work on a low-rank factor of the momentum."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from orthon.algorithms import low_rank_memory
from orthon.algorithms.options import (
    Group,
    Option,
    choice,
    choice_or_none,
    decay,
    flag,
    float_dtype_or_none,
    integer,
    number,
    number_or_none,
    own,
    portion,
    structural,
)
from orthon.algorithms.state import Entries, Entry
from orthon.algorithms.work import MATRIX_OPTIONS, Effort, Work
from orthon.linalg import PRECISIONS, check_precision, polar_columns_flops
from orthon.sharding import Layout


@dataclass(frozen=True)
class LowRank(Work):
    """Momentum M (m, n) and a right factor Q (n, r), or (m, r) where rows and columns change places."""

    takes_matrices = True
    options: ClassVar[Mapping[str, Option]] = {
        **MATRIX_OPTIONS,
        "momentum": decay(0.95),
        "rank_fraction": own(number(0.25, "in (0, 1]", lambda v: 0 < v <= 1)),
        "rank_multiple_of": own(integer(1, at_least=1)),
        "right_factor": choice("orthonormalize", "normalize", "polar"),
        "orthonormal_side": structural(choice("short", "long")),
        "power_iterations": integer(1, at_least=1),
        "tail": number(0.7, ">= 0", lambda v: 0 <= v < math.inf),
        "residual_momentum": number_or_none("in [0, 1]", lambda v: 0 <= v <= 1),
        "nesterov": flag(True),
        "route": own(choice("auto", "owners", "shards")),
        "precision": own(choice_or_none(*PRECISIONS)),
        "product_dtype": own(float_dtype_or_none(float16=False)),
    }
    needs = "momentum", "Q"

    def entries(self, shape: tuple[int, ...], options: Group) -> Entries:
        """Return a zero momentum (m, n) and a random right factor (n, r), or (m, r) if P belongs to the columns."""
        side, dtype = 1 - _left_side(shape, options), options["state_dtype"]
        return {
            "momentum": Entry(dtype=dtype, own=True),
            "Q": Entry(side=side, width=self.update_rank(shape, options), dtype=dtype, std=1 / math.sqrt(shape[side])),
        }

    def check_options(self, options: Group, where: str) -> None:
        """Raise a ValueError if Nesterov's look ahead is asked for where momentum does not fade as a whole."""
        residual = options["residual_momentum"]
        if options["nesterov"] and residual is not None:
            raise ValueError(
                f"{where}: nesterov should be False with residual_momentum={residual!r}, as it looks ahead of a "
                "momentum that fades as a whole; residual_momentum=None is that"
            )

    def check_layout(self, layout: Layout, options: Group) -> None:
        """Raise a ValueError if the device does not have the arithmetic that is asked for."""
        check_precision(options["precision"], layout.device)

    def update_rank(self, shape: tuple[int, ...], options: Group) -> int:
        """Return r, the rank of Q and of the update."""
        short, multiple = min(shape), options["rank_multiple_of"]
        return min(short, int(multiple * math.ceil(portion(options["rank_fraction"], short) / multiple)))

    def temporaries(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return about how many bytes a step takes for one matrix, see `low_rank_memory`."""
        r, has_tail = self.update_rank(layout.shape, options), self.has_tail(layout.shape, options)
        return low_rank_memory.temporaries(layout, options, dtype, r=r, has_tail=has_tail)

    def routes(self, layout: Layout, options: Group) -> tuple[str, ...]:  # noqa: ARG002
        """Return "owners" and "shards", or the one that is asked for."""
        return ("owners", "shards") if options["route"] == "auto" else (options["route"],)

    def effort(self, route: str, layout: Layout, options: Group) -> Effort:
        """Return what the update of one matrix takes.

        A power iteration has two products with M, the update one of low rank, and feedback another. Where R is not Q
        times lengths of columns but Q T, T takes products with tall factors, and so do R for a tail and feedback. The
        owner gets M and Q, and sends back Q, the update, and with feedback M. On shards, tall factors are summed and
        gathered, and r × r triangles.
        """
        side = _left_side(layout.shape, options)
        r, iterations = self.update_rank(layout.shape, options), options["power_iterations"]
        orthonormal, polar = options["right_factor"] != "normalize", options["right_factor"] == "polar"
        feedback, tail = options["residual_momentum"] is not None, self.has_tail(layout.shape, options)
        cols = layout.side(1 - side, divide=False, unsynced=False)
        makes_r = tail and route == "shards" and cols.holders.size > 1  # for the tail, as Q T
        has_t = orthonormal and (feedback or makes_r)

        def tall(p: float, q: float, *, shares: tuple[float, float]) -> float:
            """Return the operations of products of p × r and q × r factors, of which a rank has shares, with r × r."""
            found = iterations * (8 * shares[0] + (8 * orthonormal + 4 * polar) * shares[1]) + 2 * has_t * shares[1]
            return float(r**2 * (found + 2 * orthonormal * (makes_r * q + feedback * min(p, q))))

        factoring = (2.0 * r**3 * (1 + orthonormal) + polar * polar_columns_flops(r)) * iterations
        copies = layout.copies(unsynced=False).size
        if route != "shards":
            p, q = layout.shape[side], layout.shape[1 - side]
            here, of_q = math.prod(layout.largest_shard), q * r / layout.everyone.size
            others = 1 - copies / layout.everyone.size  # the part of a copy that other ranks have
            to_copies = ((1.0 + feedback) * here + of_q * copies) * (copies - 1) / copies
            numbers = ((2.0 + feedback) * here / copies + 2.0 * of_q) * others + to_copies
            products = 4.0 * p * q * r * (iterations + (1 + feedback) / 2)
            return Effort(products + tall(p, q, shares=(p, q)), factoring, numbers)
        m, n = layout.largest_shard if side == 0 else layout.largest_shard[::-1]
        rows = layout.side(side, divide=False, unsynced=False)
        products = 4.0 * m * n * r * (iterations / copies + (1 + feedback) / 2)
        products += tall(m, n, shares=(m / (rows.summands.size * copies), n / (cols.summands.size * copies)))
        summed_p, summed_q = m * r * (rows.summands.size * copies > 1), n * r * (cols.summands.size > 1)
        numbers = iterations * (2.0 * (summed_p + summed_q) + (3.0 * (1 + orthonormal) + 2.0 * polar) * r**2)
        numbers += n * r * cols.spreads(r) + 2.0 * has_t * r**2
        if tail:  # squares of columns, lengths of directions, factors of columns
            numbers += 2.0 * n * (cols.summands.size > 1) + 2.0 * r
        return Effort(products, factoring, numbers)

    def owned_bytes(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return about how many bytes the owner of one whole matrix takes for it, see `low_rank_memory`."""
        r, has_tail = self.update_rank(layout.shape, options), self.has_tail(layout.shape, options)
        side = _left_side(layout.shape, options)
        return low_rank_memory.owned_bytes(layout, options, dtype, r=r, side=side, has_tail=has_tail)

    def has_tail(self, shape: tuple[int, ...], options: Group) -> bool:
        """Return whether the option asks for a tail, and the rank is not full, where nothing is left out."""
        return bool(options["tail"]) and self.update_rank(shape, options) < min(shape)

    def tail_length(self, shape: tuple[int, ...], options: Group) -> float:
        """Return the length of a column of the tail; 0 if there is none."""
        if not self.has_tail(shape, options):
            return 0.0
        side = _left_side(shape, options)
        return float(options["tail"] * math.sqrt((shape[side] - self.update_rank(shape, options)) / shape[1 - side]))

    def compresses(self, layout: Layout, options: Group) -> bool:
        """Return whether the factors of all power iterations have fewer numbers than the gradient.

        Owners find the factors of whole gradients, so that there is nothing to average but these. The tail is made of
        the momentum itself, which has to be that of all gradients then.
        """
        if options["route"] == "owners" or options["tail"]:
            return False
        m, n = layout.largest_shard
        return bool(options["power_iterations"] * (m + n) * self.update_rank(layout.shape, options) < m * n)


def _left_side(shape: tuple[int, ...], options: Group) -> int:
    """Return the side to which P belongs: 0 for the rows of the weight, 1 for its columns. Q belongs to the other."""
    return 1 if is_transposed(shape, options) else 0


def is_transposed(shape: tuple[int, ...], options: Group) -> bool:
    """Return whether P belongs to the columns of the weight. Ties go to the rows, the output side."""
    m, n = shape
    return m > n if options["orthonormal_side"] == "short" else m < n
