"""How one parameter lies on the ranks, read off its DTensor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from orthon.sharding.dtensor import is_dtensor
from orthon.sharding.grid import Grid
from orthon.sharding.ranks import Ranks
from orthon.sharding.side import Side

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

Part = tuple[int, int]  # where a rank's part of a dim starts and stops, in global indices


@dataclass(frozen=True)
class Extent:
    """The indices of one dim of a tensor, or of one side of a matrix, and the axes of the grid that cut them.

    Attributes:
        size: how many there are in the dim that is cut.
        axes: that cut it, in the order of cutting. Each cut is that of torch.chunk, so that every part is a range of
            indices, possibly an empty one.
        unit: how many indices of the side each index of the dim stands for.
        window: which of these indices the side has; None for all.
    """

    size: int
    axes: tuple[int, ...] = ()
    unit: int = 1
    window: Part | None = None

    @property
    def range(self) -> Part:
        """Which indices there are."""
        return self.window or (0, self.size * self.unit)

    @property
    def length(self) -> int:
        """How many there are."""
        return self.range[1] - self.range[0]


@dataclass(frozen=True, eq=False)
class Layout:
    """How one parameter lies on the ranks, or the matrices that it is read as.

    Attributes:
        extents: of the dims of the parameter, or of the rows and the columns of each matrix.
        grid: the ranks.
        device: on which the parameter is.
        mesh: of the parameter and its state, if they are DTensors.
        placements: on that mesh.
        apart: the axes along which ranks have other matrices.
        unspread: a side of the matrices along which no state is spread over the ranks that cut the other; None if any
            may be.
    """

    extents: tuple[Extent, ...]
    grid: Grid
    device: torch.device
    mesh: DeviceMesh | None = None
    placements: "tuple[Placement, ...]" = ()
    apart: tuple[int, ...] = ()
    unspread: int | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter, or of one matrix."""
        return tuple(extent.length for extent in self.extents)

    @cached_property
    def cuts(self) -> tuple[tuple[int, ...], ...]:
        """For each dim the axes of the grid that cut it, in the order of cutting."""
        return tuple(extent.axes for extent in self.extents)

    @cached_property
    def transposed(self) -> "Layout":
        """The layout of the transposed matrices."""
        unspread = None if self.unspread is None else 1 - self.unspread
        extents = self.extents[::-1]
        return replace(self, extents=extents, mesh=None, placements=(), unspread=unspread)

    @property
    def copies(self) -> tuple[int, ...]:
        """The axes along which every rank has the same part, but for the user's replicas."""
        cut = {axis for axes in self.cuts for axis in axes} | set(self.apart)
        return tuple(a for a in range(self.grid.ranks.ndim) if a not in cut and a != self.grid.replicas)

    def __str__(self) -> str:
        sizes = [math.prod(self.grid.ranks.shape[axis] for axis in axes) for axes in self.cuts]
        sides = ("rows", "columns") if len(sizes) == 2 else tuple(f"dim {dim}" for dim in range(len(sizes)))
        cuts = [f"{side}/{size}" for side, size in zip(sides, sizes, strict=True) if size > 1]
        apart = math.prod(self.grid.ranks.shape[axis] for axis in self.apart)
        copies = self.alike(averages=False).size
        return ", ".join(
            [" × ".join(cuts) or "whole", *[f"matrices/{apart}"] * (apart > 1), *[f"{copies} copies"] * (copies > 1)]
        )

    @property
    def everyone(self) -> Ranks:
        """The ranks that hold any part."""
        return self.grid.along([axis for axis in range(self.grid.ranks.ndim) if axis not in self.apart])

    @property
    def replicas(self) -> Ranks:
        """The user's replicas of this rank's part."""
        return self.grid.along(() if self.grid.replicas is None else (self.grid.replicas,))

    def alike(self, *, averages: bool) -> Ranks:
        """Return the ranks that should have the same gradient; not the user's replicas if it is yet to be averaged."""
        replicas = () if averages or self.grid.replicas is None else (self.grid.replicas,)
        return self.grid.along(self.copies + replicas)

    def part(self, dim: int, *, also: Sequence[int] = ()) -> Part:
        """Return this rank's part of a dim, cut along more axes as well."""
        return self._part(dim, also, {})

    @cached_property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of this rank's part."""
        return tuple(stop - start for start, stop in map(self.part, range(len(self.extents))))

    def parts(self, dim: int, along: Sequence[int], *, also: Sequence[int] = ()) -> list[Part]:
        """Return the parts of the ranks that differ from this one in some axes alone, the first axis slowest."""
        places = product(*(range(self.grid.ranks.shape[axis]) for axis in along))
        return [self._part(dim, also, dict(zip(along, place, strict=True))) for place in places]

    @cached_property
    def largest(self) -> tuple[int, ...]:
        """The most indices of each dim that any rank has."""
        return tuple(max(stop - start for start, stop in self.parts(dim, axes)) for dim, axes in enumerate(self.cuts))

    def side(self, dim: int, *, share: bool, unsynced: bool) -> Side:
        """Return a dim of a matrix as a side of it, along which its tall factors lie.

        Args:
            dim: 0 for the rows, 1 for the columns.
            share: whether ranks that would compute the same part of a factor divide it among them.
            unsynced: whether the gradients of the user's replicas differ.
        """
        key = (dim, share, unsynced)
        if key not in self._sides:
            self._sides[key] = self._make_side(dim, share, unsynced)
        return self._sides[key]

    @cached_property
    def _sides(self) -> dict[tuple[int, bool, bool], Side]:
        """The sides that have been asked for. No field, so that `dataclasses.replace` does not share it."""
        return {}

    @cached_property
    def _specs(self) -> "dict[torch.dtype, DTensorSpec]":
        """What DTensor wants to know of tensors that lie as the parameter does, by their dtype. No field, as above."""
        return {}

    def _make_side(self, dim: int, share: bool, unsynced: bool) -> Side:
        replicas = () if self.grid.replicas is None else (self.grid.replicas,)
        copies = self.copies if unsynced else self.copies + replicas
        summing = self.cuts[1 - dim] + (replicas if unsynced else ())
        sharing = copies if share else ()
        spreading = () if dim == self.unspread else self.cuts[1 - dim]
        start, stop = self.part(dim)
        # Of a block among others, a rank holds as large a share as of all of them, but not less than one index.
        other = self.extents[1 - dim]
        whole = replace(self, extents=(replace(other, window=None),))
        opposite = max(1.0, whole.largest[0] * other.length / whole.shape[0])
        return Side(
            size=stop - start,
            copies=self.grid.along(sharing),
            summands=self.grid.along(summing),
            holders=self.grid.along(sharing + summing),
            ranks=self.grid.along(self.cuts[dim] + sharing + summing),
            averaged=self.grid.along(replicas if unsynced else ()).size,
            others=self.grid.along(spreading),
            pieces=[stop - start for start, stop in self.parts(dim, spreading, also=spreading)],
            opposite=opposite,
        )

    def zeros_like(self, param: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return zeros that lie as a parameter of this layout does, in its own dtype or another."""
        zeros = torch.zeros_like(self.fit(local(param)), dtype=dtype, memory_format=torch.preserve_format)
        return zeros if self.mesh is None else self.wrapped(zeros)

    def wrapped(self, part: Tensor) -> Tensor:
        """Return the DTensor of this layout whose local part is `part`."""
        assert self.mesh is not None
        if part.dtype not in self._specs:
            self._specs[part.dtype] = _spec(part.dtype, self.mesh, self.placements, self.shape)
        from torch.distributed.tensor import DTensor

        return DTensor(part, self._specs[part.dtype], requires_grad=False)  # type: ignore[no-untyped-call]

    def fit(self, part: Tensor) -> Tensor:
        """Return this rank's part with the extents that it should have, which an empty one may have lost."""
        return part if part.numel() else part.view(self.part_shape)

    def placed(self, part: Tensor, shape: Sequence[int], cuts: Mapping[int, Sequence[int]]) -> Tensor:
        """Return a state of which `part` is this rank's part, as the parameter's kind.

        Args:
            part: of the state.
            shape: of all of it.
            cuts: for each dim of it that is cut the axes that do so, in the order of cutting.
        """
        if self.mesh is None:
            return part
        from torch.distributed.tensor import Replicate, Shard
        from torch.distributed.tensor.placement_types import _StridedShard

        placements: list[Placement] = [Replicate() for _ in self.placements]
        for dim, order in cuts.items():
            for place, axis in enumerate(order):
                # An axis that cuts after later axes of the mesh have done so is what DTensor calls strided.
                later = math.prod(self.grid.ranks.shape[before] for before in order[:place] if before > axis)
                placements[axis] = Shard(dim) if later == 1 else _StridedShard(dim, split_factor=later)
        return _dtensor(part, self.mesh, placements, shape)

    def _part(self, dim: int, also: Sequence[int], at: Mapping[int, int]) -> Part:
        """Return the part of the rank that differs from this one in being `at` other coordinates."""
        extent = self.extents[dim]
        part = (0, extent.size)
        for axis in (*extent.axes, *also):
            part = _chunk(part, self.grid.ranks.shape[axis], at.get(axis, self.grid.coordinate[axis]))
        first, last = extent.range
        start, stop = (min(max(edge * extent.unit, first), last) - first for edge in part)
        return start, stop


def cuts_of(param: "DTensor") -> tuple[tuple[int, ...], ...]:
    """Return for each dim of a parameter the mesh axes that cut it, in the order of cutting.

    Axes cut from left to right, but a strided one cuts after as many later axes as its split factor tells. Axes
    of size 1 cut nothing.

    Raises:
        NotImplementedError: for a placement that is no cut of one dim.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    cuts: list[list[int]] = [[] for _ in range(param.ndim)]
    sizes = param.device_mesh.shape
    for axis in reversed(range(param.device_mesh.ndim)):
        placement = param.placements[axis]
        if isinstance(placement, Replicate) or (sizes[axis] == 1 and not placement.is_partial()):
            continue
        if not isinstance(placement, Shard | _StridedShard):
            raise NotImplementedError(
                f"its placement {placement} on mesh axis {axis} (all: {param.placements}) cannot be served; "
                "what can: Replicate() and Shard(dim), as fully_shard and parallelize_module make them"
            )
        order = cuts[placement.dim % param.ndim]
        factor = placement.split_factor if isinstance(placement, _StridedShard) else 1
        befores = [math.prod(sizes[later] for later in order[:place]) for place in range(len(order) + 1)]
        if factor not in befores:
            raise NotImplementedError(
                f"its placement {placement} on mesh axis {axis} (all: {param.placements}) cannot be served: the split "
                f"factor should be the size of the mesh axes that cut before it, one of {befores}"
            )
        order.insert(befores.index(int(factor)), axis)
    return tuple(map(tuple, cuts))


def check_placements(param: Tensor) -> None:
    """Raise a NotImplementedError for a parameter whose layout cannot be served, without asking other ranks."""
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise NotImplementedError(
            "is a flat parameter of FullyShardedDataParallel (FSDP1), which has no rows and columns; shard with "
            "FSDP2 instead: from torch.distributed.fsdp import fully_shard; fully_shard(model)"
        )
    if is_dtensor(param):
        cuts_of(param)


def make_layout(param: Tensor, grid: Grid) -> Layout:
    """Return the layout of a parameter on the grid of its mesh.

    Raises:
        ValueError: for replicas that hold different parts.
        NotImplementedError: for a placement that cannot be served, or a local part that does not fit it.
    """
    if not is_dtensor(param):
        return Layout(tuple(map(Extent, param.shape)), grid, param.device)
    extents = tuple(map(Extent, param.shape, cuts_of(param)))
    layout = Layout(extents, grid, param.device, param.device_mesh, param.placements)
    if any(grid.replicas in axes for axes in layout.cuts):
        raise ValueError(
            f"replicas should be ranks with copies of it, but its placements {param.placements} cut it over them"
        )
    expected = list(layout.part_shape)
    actual = list(param.to_local().shape)
    if actual != expected and (param.to_local().numel() or 0 not in expected):
        raise NotImplementedError(
            f"its local shape {actual} is not the {expected} that follows from {param.placements} on a mesh of shape "
            f"{tuple(param.device_mesh.shape)} for {tuple(param.shape)}"
        )
    return layout


def takes_part(x: Tensor) -> bool:
    """Return whether this rank belongs to the mesh of `x`."""
    return not is_dtensor(x) or x.device_mesh.get_coordinate() is not None


def local(x: Tensor) -> Tensor:
    """Return this rank's part of a tensor, over the same storage. Not differentiable, unlike `to_local`."""
    return x._local_tensor if is_dtensor(x) else x


def relocated(x: Tensor, part: Tensor) -> Tensor:
    """Return a tensor like `x` whose local part is `part`."""
    return _dtensor(part, x.device_mesh, x.placements, x.shape) if is_dtensor(x) else part


def on_meta(x: Tensor) -> Tensor:
    """Return a tensor like `x`, without storage."""
    return relocated(x.detach(), local(x.detach()).to("meta"))


def _dtensor(part: Tensor, mesh: DeviceMesh, placements: "Sequence[Placement]", shape: Sequence[int]) -> "DTensor":
    from torch.distributed.tensor import DTensor

    # Not from_local, which would move what is offloaded to the CPU to the device of the mesh.
    spec = _spec(part.dtype, mesh, placements, shape)
    return DTensor(part, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _spec(
    dtype: torch.dtype, mesh: DeviceMesh, placements: "Sequence[Placement]", shape: Sequence[int]
) -> "DTensorSpec":
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    shape = torch.Size(shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensorSpec(mesh, tuple(placements), tensor_meta=TensorMeta(shape, stride, dtype))


def _chunk(part: Part, count: int, index: int) -> Part:
    """Return piece `index` of `count` of a range, with the sizes of torch.chunk."""
    start, stop = part
    size = -(-(stop - start) // count)
    return min(start + index * size, stop), min(start + (index + 1) * size, stop)
