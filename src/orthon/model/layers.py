"""What the tables of known modules are looked up with: names of classes, and layers with a matrix as their weight."""

from torch import nn

from orthon.model.roles import Role, hidden
from orthon.model.stored import stored
from orthon.model.wrappers import class_names, unwrapped
from orthon.sharding.matrix_view import MatrixView

# A parameter and its role, as a finder yields them.
Finding = tuple[nn.Parameter, Role]


def is_conv1d(module: nn.Module) -> bool:
    """Return whether this is transformers' `Conv1D`, which is a Linear with its weight stored as (in, out)."""
    if "Conv1D" not in class_names(module) or (weight := stored(module, "weight")) is None:
        return False
    return weight.ndim == 2 and weight.shape[1] == getattr(module, "nf", None)


class Layer:
    """A layer with a matrix as its weight: a Linear, or transformers' Conv1D."""

    def __init__(self, weight: nn.Parameter, transposed: bool) -> None:
        self.weight = weight
        self.transposed = transposed
        self.rows, self.columns = reversed(weight.shape) if transposed else weight.shape

    @classmethod
    def of(cls, module: nn.Module, child: str) -> "Layer | None":
        """Return the child of a module that has this name, if it is such a layer; wrappers do not count."""
        layer = module._modules.get(child)
        if layer is None:
            return None
        layer = unwrapped(layer)
        weight = stored(layer, "weight")
        return None if weight is None or weight.ndim != 2 else cls(weight, is_conv1d(layer))

    def role(self, reason: str, blocks: int | tuple[int, ...], side: str = "rows") -> Role:
        """Return the role of the weight, cut into these blocks."""
        return hidden(reason, MatrixView(transposed=self.transposed, blocks=blocks, side=side))
