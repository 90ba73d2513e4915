"""QK-clip: queries and keys shrink where the attention logits have grown too large."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from orthon.algorithms.options import number
from orthon.sharding import Layouts, is_dtensor, local, takes_part

_THRESHOLD = number(100.0, "above 0 and finite", lambda v: v > 0 and math.isfinite(v))


@torch.no_grad()
def qk_clip_(
    query: Tensor,
    key: Tensor,
    max_logits: Tensor,
    *,
    threshold: float = 100.0,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Scale down, in place, the query and key rows of the attention heads whose logits exceed a threshold.

    This is the clip of MuonClip (Kimi K2, arXiv 2507.20534, section 2.1). Call it after each optimizer step, with the
    largest logits of the step's forward passes. A logit is an input of the softmax, q·k/√d, where no mask hides the key
    from the query. It is linear in the query rows of its head and in the key rows, also through rotary embeddings. It
    is not linear through a normalization of queries or keys: there the clip would change nothing. With S the largest
    logit of a query head,

        γ = min(1, threshold / S)                                     of a query head
        factor of a key head = √(largest γ of the query heads that share it)
        factor of a query head = γ / (factor of its key head)

    The logits of each query head are then multiplied by γ: on the same input they are at most the threshold, up to the
    rounding of the weights' dtype. Where no key head is shared, both factors are √γ, as in the paper. The paper leaves
    a key that all heads share as it is, and multiplies the queries by γ. Here a shared key shrinks by the factor that
    all of its query heads need, and each query takes the rest. No factor is above 1. Where a query head did not exceed
    the threshold, its logits, its query rows and its key rows keep every bit.

    A largest logit that is infinite or NaN gives γ = 1. No factor repairs it: the training is broken, as the loss and
    the optimizer's `nonfinite` tell. −∞ gives γ = 1 as well: it is the largest logit of a head that saw no input.

    The factors stay on the device, and nothing waits for them. DTensors may be cut in any way, also through heads: each
    process scales the rows that it has, without communication. All processes that hold a part must bring the same
    `max_logits`, those of all heads.

    Args:
        query: weight (heads·d, n) of the query projection, plain or a DTensor.
        key: weight (kv_heads·d, n) of the key projection; query head h uses key head h // (heads / kv_heads).
        max_logits: largest logit of each query head, float (heads,), a plain tensor.
        threshold: the largest logit to allow.
        query_bias: bias (heads·d,) of the query projection, if it has one.
        key_bias: bias (kv_heads·d,) of the key projection, if it has one.

    Returns:
        γ of each query head, (heads,), in the dtype of `max_logits` but at least float32.

    Raises:
        TypeError, ValueError: for arguments of another type or shape, or a threshold that is not above 0.
        NotImplementedError: for a DTensor with a placement that is no cut, such as Partial(). Nothing is changed then.
    """
    threshold = _THRESHOLD.check("threshold", threshold, "qk_clip_")
    kv_heads = _kv_heads(query, key, max_logits)
    largest = max_logits.to(torch.promote_types(max_logits.dtype, torch.float32))
    exceeds = (largest > threshold) & largest.isfinite()
    # The quotient may underflow. A factor of zero would make the head useless for good.
    gamma = torch.where(exceeds, threshold / largest, 1.0).clamp(min=torch.finfo(largest.dtype).tiny)
    key_factors = gamma.view(kv_heads, -1).amax(1).sqrt()
    query_factors = (gamma.view(kv_heads, -1) / key_factors[:, None]).flatten()

    scaled = [("query", query, query_factors), ("key", key, key_factors)]
    for name, bias, weight, factors in (
        ("query_bias", query_bias, query, query_factors),
        ("key_bias", key_bias, key, key_factors),
    ):
        if bias is not None:
            _check_bias(name, bias, len(weight))
            scaled.append((name, bias, factors))
    parts = [part for name, param, factors in scaled for part in _parts(name, param, factors)]
    for rows, factor in parts:
        rows.mul_(factor)
    return gamma


def _parts(name: str, param: Tensor, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's part of a parameter, if it has one, with the factor of each of its rows.

    Args:
        name: for errors.
        param: a weight or a bias.
        factors: of the heads.
    """
    if not takes_part(param) or not local(param).numel():
        return
    try:
        start, stop = Layouts(None).of(param).span(0)
    except NotImplementedError as error:
        raise NotImplementedError(f"qk_clip_: {name}: {error}") from error
    part = local(param)
    by_row = factors.to(part.device).repeat_interleave(param.shape[0] // len(factors))[start:stop]
    yield part, by_row.view(-1, *[1] * (param.ndim - 1))


def _kv_heads(query: Tensor, key: Tensor, max_logits: Tensor) -> int:
    """Check the shapes, and return the number of key heads that follows from them."""
    for name, x in (("query", query), ("key", key), ("max_logits", max_logits)):
        _check_tensor(name, x)
    if max_logits.ndim != 1 or not len(max_logits) or is_dtensor(max_logits):
        raise ValueError(
            "qk_clip_: max_logits should be a plain tensor of shape (heads,), but is "
            f"a {type(max_logits).__name__} of shape {tuple(max_logits.shape)}"
        )
    heads = len(max_logits)
    if query.ndim != 2 or not len(query) or len(query) % heads:
        raise ValueError(
            f"qk_clip_: query should have shape (heads·d, n) with the {heads} heads of max_logits, "
            f"but has {tuple(query.shape)}"
        )
    d = len(query) // heads
    if key.ndim != 2 or not len(key) or len(key) % d or heads % (len(key) // d):
        raise ValueError(
            f"qk_clip_: key should have shape (kv_heads·{d}, n), with {d} rows for each head as query has and kv_heads "
            f"that divide its {heads} heads, but has {tuple(key.shape)}"
        )
    return len(key) // d


def _check_bias(name: str, bias: Tensor, rows: int) -> None:
    _check_tensor(name, bias)
    if tuple(bias.shape) != (rows,):
        raise ValueError(
            f"qk_clip_: {name} should have shape {(rows,)}, an entry for each row of the weight, "
            f"but has {tuple(bias.shape)}"
        )


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"qk_clip_: {name} should be a tensor of floating-point numbers, but is {kind}")
