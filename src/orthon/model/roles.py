"""The roles that a parameter can have in its model, such as embedding, output head or hidden matrix."""

from dataclasses import dataclass

from orthon.sharding.matrix_view import MatrixView


@dataclass(frozen=True)
class Role:
    """What a parameter is in its model, and what follows for its param group.

    Attributes:
        name: of the param group.
        reason: why the group has its algorithm; `orthon.explain` shows it.
        is_hidden_matrix: whether it goes to the algorithm for matrices.
        decays: whether weight decay applies to it.
        view: how it is read as matrices; None if it is one plain matrix, or none at all.
    """

    name: str
    reason: str
    is_hidden_matrix: bool = False
    decays: bool = False
    view: MatrixView | None = None


def hidden(reason: str, view: MatrixView | None = None, name: str = "hidden matrices") -> Role:
    """Return the role of a weight inside the model that is one matrix or several."""
    return Role(name, reason, is_hidden_matrix=True, decays=True, view=view)


HIDDEN = hidden("matrix inside the model")
EMBEDDING = Role("embeddings", "embedding: a gradient touches few rows")
TIED = Role("embeddings", "tied: embedding and output head in one")
PATCHES = Role(
    "patch embeddings", "patch embedding: the input layer of an image, as an embedding is of text", decays=True
)
HEAD = Role("output head", "output head: each row is one class", decays=True)
ROUTER = Role("routers", "router: each row is one expert", decays=True)
NORM = Role("norms and biases", "norm: not a matrix")
BIAS = Role("norms and biases", "bias: not a matrix")
VECTOR = Role("norms and biases", "vector or scalar: not a matrix")
ONE_LINE = Role("one-line matrices", "one row or one column: a vector", decays=True)
DEPTHWISE = Role("other weights", "depthwise convolution: each kernel is a vector", decays=True)
HIGHER = Role(
    "other weights",
    "more than two dims, unknown module: if these are matrices, override its algorithm and view",
    decays=True,
)
EMPTY = Role("other weights", "empty")
