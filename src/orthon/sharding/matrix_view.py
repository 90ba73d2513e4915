"""How a parameter that is not one plain matrix is read as matrices."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

KINDS = ("linear", "convolution")
SIDES = ("rows", "columns")


@dataclass(frozen=True)
class MatrixView:
    """A parameter read as matrices, each of which gets an orthonormal update of its own.

    The rows of a matrix belong to outputs (fan_out) and its columns to inputs (fan_in), as in `nn.Linear.weight`.

    | parameter | view |
    | --- | --- |
    | experts (E, m, n), or any leading dims | `MatrixView()` |
    | experts stored as (E, in, out), GPT-2's `Conv1D` | `MatrixView(transposed=True)` |
    | fused query, key and value, of unequal sizes | `MatrixView(blocks=(4096, 1024, 1024))` |
    | fused gate and up | `MatrixView(blocks=2)` |
    | each head of a query, key or value projection | `MatrixView(blocks=32)` |
    | each head of an output projection | `MatrixView(blocks=32, side="columns")` |
    | convolution (out, in, height, width), any number of dims | `MatrixView(kind="convolution")` |
    | convolution with groups | `MatrixView(kind="convolution", blocks=groups)` |
    | transposed convolution (in, out, ...), with groups | `MatrixView(kind="convolution", transposed=True, ...)` |

    Attributes:
        kind: "linear": the last two dims are rows and columns, those before them number matrices. "convolution":
            the rows are output channels, and each has an input channel times a place of the kernel in a column.
        transposed: inputs come before outputs.
        blocks: into how many equal matrices one side is cut, or the size of each.
        side: which: "rows" or "columns". Not for convolutions, whose groups are on the output channels, or on the input
            channels of a transposed one.
    """

    kind: str = "linear"
    transposed: bool = False
    blocks: int | tuple[int, ...] = 1
    side: str = "rows"

    def __post_init__(self) -> None:
        def refuse(name: str, allowed: str, *, has_type: bool = True) -> Exception:
            message = f"MatrixView: {name} should be {allowed}, but is {getattr(self, name)!r}"
            return ValueError(message) if has_type else TypeError(message)

        for name, value, names in (("kind", self.kind, KINDS), ("side", self.side, SIDES)):
            if value not in names:
                raise refuse(name, f"one of {', '.join(map(repr, names))}", has_type=isinstance(value, str))
        if not isinstance(self.transposed, bool):
            raise refuse("transposed", "True or False", has_type=False)
        given: Any = self.blocks
        if isinstance(given, list):  # as read from a file
            object.__setattr__(self, "blocks", tuple(given))
        sizes = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,)
        are_integers = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if not sizes or not are_integers or min(sizes) < 1:
            allowed = "an integer >= 1, the number of equal blocks, or a tuple of their sizes"
            raise refuse("blocks", allowed, has_type=are_integers)
        if self.kind == "convolution" and isinstance(self.blocks, tuple):
            raise refuse("blocks", "the number of groups for a convolution")
        if self.kind == "convolution" and self.side != "rows":
            raise refuse("side", "left out for a convolution, whose groups are where its kind has them")

    @classmethod
    def of(cls, value: "MatrixView | Mapping[str, Any]") -> "MatrixView":
        """Return the view that a mapping of its attributes describes, as `as_dict` returns it.

        Raises:
            TypeError: for what is neither, or an attribute of a wrong type.
            ValueError: for other keys, or values that are not allowed.
        """
        if isinstance(value, MatrixView):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"MatrixView: should be a MatrixView or a mapping of its fields, but is {value!r}")
        known = {field.name for field in fields(cls)}
        if unknown := value.keys() - known:
            raise ValueError(
                f"MatrixView: takes {', '.join(sorted(known))}, not {', '.join(sorted(map(repr, unknown)))}"
            )
        return cls(**value)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that describe the view."""
        return asdict(self)

    def read(self, shape: tuple[int, ...]) -> "Reading":
        """Return which dims and blocks of a parameter are its matrices.

        Raises:
            ValueError: if a parameter of this shape cannot be read so.
        """
        shape = tuple(shape)
        least = 2 if self.kind == "linear" else 3
        if len(shape) < least or 0 in shape:
            raise ValueError(
                f"its view {self} needs a shape of {least} dims or more, none of them 0, but it is {shape}"
            )
        batch: tuple[int, ...] = tuple(range(len(shape) - 2))
        rows: tuple[int, ...] = (len(shape) - 2,)
        cols: tuple[int, ...] = (len(shape) - 1,)
        if self.kind == "convolution":
            first, second, *places = range(len(shape))
            batch, rows, cols = (), (first,), (second, *places)
            if self.transposed:
                rows, cols = (second,), (first, *places)
        elif self.transposed:
            rows, cols = cols, rows
        on_inputs = self.transposed if self.kind == "convolution" else self.side == "columns"
        blocked = int(on_inputs)
        # A convolution's groups cut its channels, which are the slowest of the dims that make a side.
        dim = (rows, cols)[blocked][0]
        sizes = self._sizes(shape[dim], shape)
        if self.kind == "convolution" and len(sizes) > 1 and 1 in (sizes[0], shape[1]):
            raise ValueError(
                f"its view {self} of shape {shape} is a depthwise convolution, whose kernels are no matrices; give it "
                "to another algorithm, such as 'adamw'"
            )
        return Reading(shape, batch, (rows, cols), blocked, sizes)

    def _sizes(self, size: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(self.blocks, tuple):
            if sum(self.blocks) != size:
                raise ValueError(
                    f"its view {self} has blocks of {sum(self.blocks)} in all, but should have {size} for {shape}"
                )
            return self.blocks
        if size % self.blocks:
            raise ValueError(f"its view {self} should have a number of blocks that divides {size}, for {shape}")
        return (size // self.blocks,) * self.blocks

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"MatrixView({', '.join(changed)})"


@dataclass(frozen=True)
class Reading:
    """Which dims and blocks of a parameter of a given shape are its matrices.

    Attributes:
        shape: of the parameter.
        batch: the dims that number matrices.
        sides: the dims that make the rows, and those that make the columns; the first of them slowest.
        blocked: which of the sides is cut into blocks.
        blocks: their sizes along the first dim of that side.
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    sides: tuple[tuple[int, ...], tuple[int, ...]]
    blocked: int
    blocks: tuple[int, ...]

    def matrix(self, block: int) -> tuple[int, int]:
        """Return the shape of the matrices of one block."""
        sizes = [prod(self.shape[dim] for dim in dims) for dims in self.sides]
        whole = self.shape[self.sides[self.blocked][0]]
        sizes[self.blocked] = sizes[self.blocked] // whole * self.blocks[block]
        return sizes[0], sizes[1]

    @property
    def count(self) -> int:
        """How many matrices there are."""
        return prod(self.shape[dim] for dim in self.batch) * len(self.blocks)


PLAIN = MatrixView()
