"""The roles that a parameter can have in its model, such as embedding, output head or hidden matrix."""

from dataclasses import dataclass, field, replace

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
        as_matrix: its role if an override makes it a matrix, which it may be for all one knows. What cannot be one has
            None, and keeps its role. Roles that differ in this alone are one.
        options: names and values that its group has where its algorithm takes them.
    """

    name: str
    reason: str
    is_hidden_matrix: bool = False
    decays: bool = False
    view: MatrixView | None = None
    as_matrix: "Role | None" = field(default=None, compare=False)
    options: tuple[tuple[str, float | str], ...] = ()


def hidden(reason: str, view: MatrixView | None = None, name: str = "hidden matrices") -> Role:
    """Return the role of a weight inside the model that is one matrix or several."""
    return Role(name, reason, is_hidden_matrix=True, decays=True, view=view)


def lora(view: MatrixView | None = None) -> Role:
    """Return the role of a factor of LoRA, A (r × n) or B (m × r).

    It is a matrix, but a thin one. The usual factor of the learning rate, √(rows / columns), would be √(r/n) for A and
    √(m/r) for B, 256 times as large for r = 16 in a matrix of 4096×4096. Here it is 1 for both: an update has the
    operator norm lr. Its entries are then about lr/√n large, which is what AdamW makes of a learning rate of 3e-4 for
    lr = 0.02 and n = 4096. The rank of the update is r, all that the factor has: a part of it would save next to
    nothing.
    """
    options = (("rank_fraction", 1.0), ("fraction", 1.0), ("adjust_lr_fn", "none"))
    return Role("LoRA factors", LORA, is_hidden_matrix=True, decays=True, view=view, options=options)


LORA = "LoRA: a thin matrix; update of full rank, and no factor of lr, so that A and B move alike"
HIDDEN = hidden("matrix inside the model")
BY_OVERRIDE = hidden("matrix by override")
EMBEDDING = Role("embeddings", "embedding: a gradient touches few rows")
TIED = Role("embeddings", "tied: embedding and output head in one")
PATCHES = Role(
    "patch embeddings", "patch embedding: the input layer of an image, as an embedding is of text", decays=True
)
HEAD = Role("output head", "output head: each row is one class", decays=True)
ROUTER = Role("routers", "router: each row is one expert", decays=True)
NORM = Role("norms and biases", "norm, bias, vector or scalar: not a matrix")
ONE_LINE = Role("one-line matrices", "one row or one column: a vector", decays=True)
DEPTHWISE = Role("other weights", "depthwise convolution: each kernel is a vector", decays=True)
ROTATION = Role("rotations", "angles of a rotation, by rows: not a matrix")
BARE = Role(
    "other parameters",
    "belongs to no layer that is known to multiply by it: if it is a matrix, override its algorithm",
    as_matrix=BY_OVERRIDE,
)
HIGHER = Role(
    "other weights",
    "more than two dims, unknown module: if these are matrices, override its algorithm and view",
    decays=True,
    as_matrix=BY_OVERRIDE,
)
EMPTY = Role("other weights", "empty: this process has none of its numbers")


def without_decay(role: Role) -> Role:
    """Return a role for a parameter that its model marks as one without weight decay."""
    role = replace(role, as_matrix=role.as_matrix and without_decay(role.as_matrix))
    if not role.decays:
        return role
    name, reason = f"{role.name} without decay", f"{role.reason}; the model says: no weight decay"
    return replace(role, name=name, reason=reason, decays=False)
