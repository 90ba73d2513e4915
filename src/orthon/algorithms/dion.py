"""Dion: orthonormal updates of low rank from one warm-started power iteration (arXiv 2504.05295)."""

import math

import torch
from torch import Tensor

from orthon.algorithms.rule import COMMON_OPTIONS, Rule
from orthon.batch import Batch
from orthon.linalg import Columns, compute_dtype, orthonormalize, random_normal, unit_columns
from orthon.lr_scale import LR_SCALES, lr_factor
from orthon.options import Group, choice, float_dtype_or_none, integer, number
from orthon.sharding import Step


def dion(batch: Batch, group: Group) -> Step[None]:
    """Make one step of Dion on matrices X (b, m, n) with momentum M (b, m, n) and right factor Q (b, n, r).

    M ← M + G
    P ← orthonormalize(M Q)                   one warm-started power iteration
    R ← Mᵀ P
    M ← M − (1 − momentum)·P Rᵀ                error feedback: what the update left out stays in M
    Q ← R / column_norms(R)
    X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ

    A direction that M does not have, up to rounding, gives no update, and its column of Q stays.
    """
    scale = lr_factor(group["lr_scale"], *batch.weights[0].shape)
    if _is_transposed(batch.weights[0].shape, group["orthonormal_side"]):
        batch = batch.transposed()
    stored, Q = batch.stacked_like_weights("momentum"), batch.stacked("Q")  # (b, m, n), (b, n, r)
    if Q.shape[1:] != (shape := (stored.shape[-1], dion_rank(stored.shape[1:], group))):
        raise ValueError(
            f"parameter {batch.names[0]!r}: Q should be {shape} by the options of its group, but is "
            f"{tuple(Q.shape[1:])}; rank and side cannot change once there is state"
        )
    batch.add_gradients(stored, maximize=group["maximize"])
    M = stored.to(compute_dtype(stored.dtype))
    if M is not stored:
        M.clamp_(torch.finfo(stored.dtype).min, torch.finfo(stored.dtype).max)  # where the sum left its range

    right_factor = orthonormalize if group["right_factor"] == "orthonormalize" else unit_columns
    left, R = yield from _project(M, Q, batch)
    for _ in range(group["power_iterations"] - 1):
        _replace_live_columns_(Q, (yield from right_factor(R, batch.cols, left=left)), batch)
        left, R = yield from _project(M, Q, batch)

    P = left.vectors if batch.gate is None else left.vectors * batch.gate  # (b, m, r)
    M.baddbmm_(P.to(M.dtype), R.mT, alpha=group["momentum"] - 1)
    if M is not stored:
        stored.copy_(M)

    lr = batch.gated_lr(group["lr"])
    right = yield from right_factor(R, batch.cols, left=left)
    batch.decay_and_add(P, right.vectors, keep=1 - lr * group["weight_decay"], by=-lr * scale)
    _replace_live_columns_(Q, right, batch)


def _project(M: Tensor, Q: Tensor, batch: Batch) -> Step[tuple[Columns, Tensor]]:
    """Return the orthonormal factor P of M Q, and R = Mᵀ P (b, n, r)."""
    B = yield from batch.cols.sum(M @ Q.to(M.dtype))  # (b, m, r)
    left = yield from orthonormalize(B, batch.rows)
    R = yield from batch.rows.sum(M.mT @ left.vectors.to(M.dtype))
    return left, R


def _replace_live_columns_(Q: Tensor, right: Columns, batch: Batch) -> None:
    """Replace the columns of Q (b, n, r) that live in the new right factor; the others stay."""
    live = batch.gated_mask(right.live.unsqueeze(-2))
    Q.masked_fill_(live, 0).add_(right.vectors.mul_(live))


def _is_transposed(shape: tuple[int, ...], orthonormal_side: str) -> bool:
    """Return whether P belongs to the columns of the weight. Ties go to the rows, the output side."""
    m, n = shape
    return m > n if orthonormal_side == "short" else m < n


def dion_rank(shape: tuple[int, ...], group: Group) -> int:
    """Return the rank r of Dion's factors for a matrix of this shape."""
    short, multiple = min(shape), group["rank_multiple_of"]
    return min(short, int(multiple * math.ceil(group["rank_fraction"] * short / multiple)))


def _new_state(name: str, param: Tensor, group: Group) -> dict[str, Tensor]:
    """Return a zero momentum (m, n) and a random right factor (n, r), or (m, r) if P belongs to the columns."""
    dtype = group["state_dtype"] or param.dtype
    side = 0 if _is_transposed(param.shape, group["orthonormal_side"]) else 1
    rows = torch.arange(param.shape[side], device=param.device)
    cols = torch.arange(dion_rank(param.shape, group), device=param.device)
    Q = random_normal(f"{group['seed']}/{name}", rows, cols, dtype=torch.float32)
    return {
        "momentum": torch.zeros(param.shape, dtype=dtype, device=param.device),
        "Q": Q.div_(math.sqrt(len(rows))).to(dtype),
    }


RULE = Rule(
    name="dion",
    options={
        **COMMON_OPTIONS,
        "rank_fraction": number(0.25, "in (0, 1]", lambda v: 0 < v <= 1),
        "rank_multiple_of": integer(1, at_least=1),
        "momentum": number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
        "right_factor": choice("normalize", "orthonormalize"),
        "orthonormal_side": choice("short", "long"),
        "power_iterations": integer(1, at_least=1),
        "lr_scale": choice(*LR_SCALES),
        "state_dtype": float_dtype_or_none(),
        "seed": integer(0, at_least=0),
    },
    new_state=_new_state,
    update=dion,
    for_matrices=True,
    rank=dion_rank,
)
