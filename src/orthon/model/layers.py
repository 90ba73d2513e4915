"""What the tables of known modules are looked up with: names of classes, and layers with a matrix as their weight."""

from torch import nn

from orthon.model.roles import Role, hidden
from orthon.sharding.matrix_view import MatrixView

# A parameter and its role, as a finder yields them.
Finding = tuple[nn.Parameter, Role]


def class_names(module: nn.Module) -> set[str]:
    """Return the names of a module's class and of its base classes; fully_shard puts a class of its own in front."""
    return {cls.__name__ for cls in type(module).__mro__}


def is_conv1d(module: nn.Module) -> bool:
    """Return whether this is transformers' `Conv1D`, which is a Linear with its weight stored as (in, out)."""
    shape = tuple(getattr(getattr(module, "weight", None), "shape", ()))
    return "Conv1D" in class_names(module) and len(shape) == 2 and shape[1] == getattr(module, "nf", None)


class Layer:
    """A layer with a matrix as its weight: a Linear, or transformers' Conv1D."""

    def __init__(self, weight: nn.Parameter, transposed: bool) -> None:
        self.weight = weight
        self.transposed = transposed
        self.rows, self.columns = reversed(weight.shape) if transposed else weight.shape

    @classmethod
    def of(cls, module: nn.Module, child: str) -> "Layer | None":
        """Return the child of a module that has this name, if it is such a layer."""
        layer = getattr(module, child, None)
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Module) or not isinstance(weight, nn.Parameter) or weight.ndim != 2:
            return None
        return cls(weight, is_conv1d(layer))

    def role(self, reason: str, blocks: int | tuple[int, ...], side: str = "rows") -> Role:
        """Return the role of the weight, cut into these blocks."""
        return hidden(reason, MatrixView(transposed=self.transposed, blocks=blocks, side=side))
