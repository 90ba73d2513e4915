"""The layouts of all parameters: parameters that lie alike have one layout."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from orthon.sharding.dtensor import is_dtensor, relocated
from orthon.sharding.grid import Grid, make_grid
from orthon.sharding.layout import Layout, make_layout
from orthon.sharding.matrices import Matrices
from orthon.sharding.matrix_view import PLAIN, MatrixView

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement

_Kind = tuple[tuple[int, ...], torch.device, DeviceMesh | None, tuple["Placement", ...]]


class Layouts:
    """The layouts of parameters, by shape, device, mesh and placements.

    Args:
        replicas: the ranks that train on other data, if the user names them.
    """

    def __init__(self, replicas: dist.ProcessGroup | None) -> None:
        self._replicas = replicas
        self._grids: dict[DeviceMesh | None, Grid] = {}
        self._layouts: dict[_Kind, Layout] = {}
        self._matrices: dict[tuple[Layout, MatrixView], Matrices] = {}

    def of(self, param: Tensor) -> Layout:
        """Return the layout of a parameter as it lies now. Ranks with shards of it must ask for it in the same order.

        Raises:
            ValueError, NotImplementedError: for a placement that cannot be served.
        """
        mesh = param.device_mesh if is_dtensor(param) else None
        kind = tuple(param.shape), param.device, mesh, tuple(param.placements) if is_dtensor(param) else ()
        if kind not in self._layouts:
            if mesh not in self._grids:
                self._grids[mesh] = make_grid(mesh, self._replicas)
            self._layouts[kind] = make_layout(param, self._grids[mesh])
        return self._layouts[kind]

    def matrices(self, layout: Layout, view: MatrixView | None) -> Matrices:
        """Return how the matrices of a parameter of this layout lie.

        Raises:
            NotImplementedError: for a layout on which the view cannot be served.
        """
        key = layout, view or PLAIN
        if key not in self._matrices:
            self._matrices[key] = Matrices(layout, key[1].read(layout.shape))
        return self._matrices[key]


def placed_like(x: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that lies as another one does.

    A whole tensor is cut without any communication. One that lies in a third way is made whole before, on all ranks
    together.

    Args:
        x: the tensor. A plain one is whole.
        like: the other one, of the same shape. Its entries do not matter.
    """
    if is_dtensor(x) and is_dtensor(like) and (x.device_mesh, x.placements) == (like.device_mesh, like.placements):
        return x
    whole = x.full_tensor() if is_dtensor(x) else x
    if is_dtensor(like):
        layout = Layouts(None).of(like)
        for dim in range(whole.ndim):
            start, stop = layout.span(dim)
            whole = whole.narrow(dim, start, stop - start)
    return relocated(like, whole)
