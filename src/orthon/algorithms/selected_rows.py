"""Work on some rows of the momentum: which are chosen, and how their update comes back into the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, Option, choice, decay, number, portion
from orthon.algorithms.state import Counter, Entries, Entry
from orthon.algorithms.whole_matrix import POLAR_OPTIONS, PolarWork, WholeMatrix
from orthon.algorithms.work import MATRIX_OPTIONS, Effort
from orthon.linalg import factor_dtype, polar_bytes, polar_flops, powers_of_two, random_normal
from orthon.sharding import Extent, Layout, Step


@dataclass(frozen=True)
class SelectedRows(PolarWork):
    """The polar factor of a fraction of the rows, or of columns in their place, see `selects_columns`."""

    options: ClassVar[Mapping[str, Option]] = {
        **MATRIX_OPTIONS,
        **POLAR_OPTIONS,
        "momentum": decay(0.95),
        "fraction": number(0.25, "in (0, 1]", lambda v: 0 < v <= 1),
        "selection": choice("global", "local", "random"),
        "selection_side": choice("short", "rows"),
    }
    needs = ("momentum",)

    def entries(self, shape: tuple[int, ...], options: Group) -> Entries:  # noqa: ARG002
        """Return a zero momentum (m, n), and for random rows the number of steps."""
        steps = {"step": Counter(on_device=options["capturable"], counted=True)}
        momentum = Entry(dtype=options["state_dtype"], own=True)
        return {"momentum": momentum, **(steps if options["selection"] == "random" else {})}

    def temporaries(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return the bytes of a polar factor of the selected rows alone; with moments, and of three in float32."""
        m, n = layout.largest_shard
        fraction = float(options["fraction"])
        of_moments = fraction * 12 * m * n if self.moments else 0.0
        return fraction * WholeMatrix().temporaries(layout, options, dtype) + of_moments

    def compresses(self, layout: Layout, options: Group) -> bool:  # noqa: ARG002
        """Return whether the rows are known without the gradients, so that only they need to be averaged."""
        return bool(options["selection"] == "random" and options["fraction"] < 1)

    def routes(self, layout: Layout, options: Group) -> tuple[str, ...]:  # noqa: ARG002
        """Return "owners"."""
        return ("owners",)

    def effort(self, route: str, layout: Layout, options: Group) -> Effort:
        """Return what the polar factor of the selected rows of one matrix takes."""
        count, length = _sides(layout.shape, options)
        whole = WholeMatrix().effort(route, layout, {**options, "polar_route": "owners"})
        steps, fraction = options["polar_steps"], float(options["fraction"])
        flops = polar_flops(portion(options["fraction"], count), length, method=options["polar"], steps=steps)
        return Effort(flops, 0.0, fraction * whole.numbers)

    def owned_bytes(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return the bytes of the polar factor of the selected rows, or of what comes before or after if that is more.

        They are copied out of the momentum, first in its dtype. The ways to the owner and back take two matrices of
        them, of which each rank sends and receives shards; three where ranks have unequally many and columns are put
        together. The step takes two as well, with moments in float32. Where they are spread over the weights for it,
        one of the two has all rows.
        """
        kept = options["state_dtype"] or dtype
        dtype = self.polar_dtype(kept, layout, options)
        count, length = _sides(layout.shape, options)
        k, side = portion(options["fraction"], count), int(selects_columns(layout.shape, options))
        computing = polar_bytes(k, length, method=options["polar"], steps=options["polar_steps"], dtype=dtype)
        is_ragged = bool(layout.cuts[side])
        of_one = (factor_dtype(dtype) if self.moments else dtype).itemsize
        stepping = (k + (k if is_ragged or layout.device.type == "cpu" else count)) * of_one
        sending = (3 if is_ragged and layout.cuts[1] else 2) * k * dtype.itemsize
        taking = 0 if is_ragged and options["selection"] != "local" else k * (kept.itemsize + dtype.itemsize)
        return max(computing, float(length * max(taking, sending, stepping)))


def selects_columns(shape: tuple[int, ...], options: Group) -> bool:
    """Return whether columns of a matrix of this shape are selected, and not rows."""
    m, n = shape
    return bool(options["selection_side"] == "short" and m > n)


def _sides(shape: tuple[int, ...], options: Group) -> tuple[int, int]:
    """Return how many rows there are to select from, or columns, and how long each of them is."""
    m, n = shape
    return (n, m) if selects_columns(shape, options) else (m, n)


@dataclass(frozen=True)
class Selection:
    """Which rows of the matrices of a batch are updated.

    Attributes:
        rows: for each matrix their indices among this rank's rows of it, ascending; one tensor where all have as many.
        count: how many rows of each matrix are selected on all ranks together.
        layout: of the selected rows as matrices of their own, or of the whole matrices where `everywhere` is given.
        everywhere: for each matrix the selected rows of all ranks, as indices of its rows, where other ranks have other
            rows; for "local" any that are as many in each rank's part.
    """

    rows: Tensor | Sequence[Tensor]
    count: int
    layout: Layout
    everywhere: list[list[int]] | None = None


def selected(norms: Tensor | None, batch: Batch) -> Step[Selection]:
    """Return which rows to update, the same on every layout unless the selection is "local".

    Args:
        norms: of this rank's part of each row, in float64, (b, m); None for "random". They are compared in float32, and
            of equal ones the first are taken, so that the order of summation practically never changes the choice.
        batch: with the options "selection" and "fraction".
    """
    layout, options, device = batch.seen_layout, batch.options, batch.grads[0].device
    m = layout.shape[0]
    start, stop = layout.span(0)
    local = options["selection"] == "local"
    k = portion(options["fraction"], stop - start if local else m)
    if norms is None:
        chosen = _random_order(batch, m)[:, :k]
    else:
        norms = yield from batch.sum_along_rows(norms)
        if not local:
            if "sizes" not in batch.memo:  # of the ranks' parts
                batch.memo["sizes"] = [span.length for span in layout.spans(0, layout.cuts[0])]
            sizes = batch.memo["sizes"]
            norms = (yield from layout.grid.along(layout.cuts[0]).gather(norms.unsqueeze(-1), sizes)).squeeze(-1)
        chosen = _comparable(norms).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = chosen.sort(dim=-1).values  # (b, k)

    if not layout.cuts[0]:
        if ("selected", k) not in batch.memo:
            batch.memo["selected", k] = replace(layout, extents=(Extent(k), layout.extents[1]))
        return Selection(chosen.to(device), k, batch.memo["selected", k])
    if local:
        spans = layout.spans(0, layout.cuts[0])
        counts = [(span.start, portion(options["fraction"], span.length)) for span in spans]
        as_many = sorted(row for first, count in counts for row in range(first, first + count))
        return Selection(chosen.to(device), len(as_many), layout, [as_many] * len(batch.names))
    # "global" waits for an accelerator: the lengths of what is sent depend on it. On "meta" any rows tell the cost.
    everywhere = [[i * m // k for i in range(k)]] * len(batch.names) if chosen.is_meta else chosen.tolist()
    mine = [[row - start for row in rows if start <= row < stop] for rows in everywhere]
    return Selection([torch.tensor(rows, dtype=torch.long, device=device) for rows in mine], k, layout, everywhere)


def _comparable(norms: Tensor) -> Tensor:
    """Return norms (b, m) of float64 in float32, those of each matrix times a power of two that brings them into it."""
    if norms.shape[-1] == 0:  # a rank that has none of the rows
        return norms.float()
    top = torch.frexp(norms.amax(-1, keepdim=True)).exponent.clamp(-1022, 1022)
    return (norms * powers_of_two(-top)).float()


def _random_order(batch: Batch, m: int) -> Tensor:
    """Return the rows of each matrix in a random order (b, m), a function of seed, name and number of the step."""
    numbers = [state["step"].reshape(1).long() for state in batch.state]
    keys = [f"{batch.options['seed']}/{name}/rows" for name in batch.names]
    everyone = torch.arange(m, device=numbers[0].device)  # an accelerator, if that tells which steps are left out
    each = zip(keys, numbers, strict=True)
    values = [random_normal(key, everyone, number, dtype=torch.float32).view(-1) for key, number in each]
    return torch.stack(values).sort(dim=-1, descending=True, stable=True).indices
