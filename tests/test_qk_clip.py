"""QK-clip: the logits that follow from the clipped weights, in float64."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orthon import qk_clip_

N, LENGTH = 12, 9  # width of the input, tokens

# heads, kv_heads, d
SHAPES = [(4, 4, 6), (6, 2, 4), (4, 1, 2), (1, 1, 8)]


def largest_logits(query: Tensor, key: Tensor, x: Tensor, heads: int, *biases: Tensor) -> Tensor:
    """The largest logit of each query head, float64 (heads,), for x of (length, n)."""
    d = len(query) // heads
    q, k = (x.double() @ weight.double().T for weight in (query, key))
    if biases:
        q, k = q + biases[0].double(), k + biases[1].double()
    q = q.unflatten(1, (heads, d))
    k = k.unflatten(1, (-1, d)).repeat_interleave(heads * d // len(key), dim=1)
    return torch.einsum("ihd,jhd->hij", q, k).div(math.sqrt(d)).flatten(1).amax(1)


def problem(heads: int, kv_heads: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, float]:
    """Weights, an input, and a threshold that every other head exceeds; of a single head, that it does."""
    generator = torch.Generator().manual_seed(0)
    query, key, x = (torch.randn(rows, N, generator=generator) for rows in (heads * d, kv_heads * d, LENGTH))
    strengths = torch.logspace(1, 0, heads)[torch.randperm(heads, generator=generator)]
    query *= strengths.repeat_interleave(d)[:, None]
    query, key = query.to(dtype), key.to(dtype)
    found = largest_logits(query, key, x, heads).sort().values
    return query, key, x, float(found[(heads - 1) // 2]) * (1.01 if heads > 1 else 0.3)


def rows_of(weight: Tensor, head: int, d: int) -> Tensor:
    return weight[head * d : (head + 1) * d]


@pytest.mark.parametrize("with_biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "d"), SHAPES)
def test_no_logit_exceeds_the_threshold_afterwards(
    heads: int, kv_heads: int, d: int, dtype: torch.dtype, with_biases: bool
) -> None:
    query, key, x, threshold = problem(heads, kv_heads, d, dtype)
    biases = [weight[:, 0].clone() for weight in (query, key)] if with_biases else []
    before = largest_logits(query, key, x, heads, *biases)
    new_query, new_key = (nn.Parameter(weight.clone()) for weight in (query, key))
    new_biases = [nn.Parameter(bias.clone()) for bias in biases]
    given = dict(zip(("query_bias", "key_bias"), new_biases, strict=False))

    gamma = qk_clip_(new_query, new_key, before, threshold=threshold, **given)

    after = largest_logits(new_query.detach(), new_key.detach(), x, heads, *[bias.detach() for bias in new_biases])
    rounding = 1e-5 if dtype != torch.bfloat16 else 2e-2
    exceeds = before > threshold
    assert exceeds.any()
    assert exceeds.all() == (heads == 1)
    assert (after <= threshold * (1 + rounding)).all()
    torch.testing.assert_close(gamma, (threshold / before).clamp(max=1))
    torch.testing.assert_close(after, gamma * before, rtol=rounding, atol=0)
    group = heads // kv_heads
    for new, old in [(new_query, query), *zip(new_biases[:1], biases[:1], strict=True)]:
        for head in range(heads):
            assert torch.equal(rows_of(new, head, d), rows_of(old, head, d)) == (not exceeds[head]), head
    for new, old in [(new_key, key), *zip(new_biases[1:], biases[1:], strict=True)]:
        for head in range(kv_heads):
            all_exceed = exceeds[head * group : (head + 1) * group].all()
            assert torch.equal(rows_of(new, head, d), rows_of(old, head, d)) == (not all_exceed), head


def test_factors_are_square_roots_where_nothing_is_shared() -> None:
    query, key = torch.ones(6, 3), torch.ones(6, 3)
    gamma = qk_clip_(query, key, torch.tensor([16.0, 1.0, 64.0]), threshold=4.0)
    assert gamma.tolist() == [0.25, 1.0, 0.0625]
    assert torch.equal(query, key)
    assert query[:, 0].tolist() == [0.5, 0.5, 1.0, 1.0, 0.25, 0.25]


def test_a_shared_key_shrinks_by_what_all_of_its_queries_have_to() -> None:
    query, key = torch.ones(4, 3), torch.ones(2, 3)
    qk_clip_(query, key, torch.tensor([16.0, 64.0, 64.0, 4.0]), threshold=4.0)
    assert key[:, 0].tolist() == [0.5, 1.0]
    assert query[:, 0].tolist() == [0.5, 0.125, 0.0625, 1.0]


@pytest.mark.parametrize("logit", [0.0, -0.0, -1e30, 99.9, 100.0, math.inf, -math.inf, math.nan])
def test_heads_that_stay_as_they_are(logit: float) -> None:
    query, key = torch.randn(8, 3), torch.randn(8, 3)
    before = query.clone(), key.clone()
    gamma = qk_clip_(query, key, torch.tensor([logit, 400.0]))
    assert gamma.tolist() == [1.0, 0.25]
    for new, old in zip((query, key), before, strict=True):
        assert torch.equal(new[:4], old[:4])
        assert torch.equal(new[4:], old[4:] / 2)


def test_factors_never_underflow() -> None:
    query, key = torch.ones(4, 3), torch.ones(2, 3)
    gamma = qk_clip_(query, key, torch.tensor([3e38, 2e38]), threshold=1e-30)
    assert (gamma > 0).all()
    assert (query > 0).all()
    assert (key > 0).all()


def test_half_precision_logits_make_factors_of_single_precision() -> None:
    query, key = torch.ones(4, 3), torch.ones(4, 3)
    gamma = qk_clip_(query, key, torch.tensor([300.0, 1.0], dtype=torch.bfloat16))
    assert gamma.dtype == torch.float32
    assert gamma[0].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("threshold", [Decimal(4), Fraction(4), 4, torch.tensor(4)])
def test_a_threshold_may_be_a_number_of_any_kind(threshold: Any) -> None:
    gamma = qk_clip_(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([16.0, 1.0]), threshold=threshold)
    assert gamma.tolist() == [0.25, 1.0]


def test_the_device_is_not_waited_for() -> None:
    with FakeTensorMode():  # raises where Python asks for a number
        qk_clip_(torch.ones(8, 3), torch.ones(4, 3), torch.ones(4), query_bias=torch.ones(8), key_bias=torch.ones(4))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"threshold": 0.0}, ValueError, "threshold should be a number above 0 and finite, but is 0.0"),
        ({"threshold": math.inf}, ValueError, "threshold should be a number above 0 and finite, but is inf"),
        ({"threshold": math.nan}, ValueError, "threshold should be a number above 0 and finite, but is nan"),
        ({"threshold": "100"}, TypeError, "threshold should be a number above 0 and finite, but is '100'"),
        ({"max_logits": [1.0]}, TypeError, "max_logits should be a tensor of floating-point numbers, but is list"),
        ({"max_logits": torch.ones(4, dtype=torch.int64)}, TypeError, "max_logits should be .* but is torch.int64"),
        ({"max_logits": torch.ones(2, 2)}, ValueError, r"max_logits should be a plain tensor .* of shape \(2, 2\)"),
        ({"max_logits": torch.ones(0)}, ValueError, r"of shape \(heads,\), but is a Tensor of shape \(0,\)"),
        ({"max_logits": torch.ones(3)}, ValueError, r"query should .* the 3 heads of max_logits, but has \(8, 3\)"),
        ({"query": None}, TypeError, "query should be a tensor of floating-point numbers, but is NoneType"),
        ({"query": torch.ones(8)}, ValueError, r"query should have shape \(heads·d, n\)"),
        ({"query": torch.ones(0, 3)}, ValueError, r"query should .* but has \(0, 3\)"),
        ({"key": torch.ones(3, 3)}, ValueError, r"key should have shape \(kv_heads·2, n\).* but has \(3, 3\)"),
        ({"key": torch.ones(6, 3)}, ValueError, r"kv_heads that divide its 4 heads, but has \(6, 3\)"),
        ({"key": torch.ones(0, 3)}, ValueError, r"but has \(0, 3\)"),
        ({"query_bias": torch.ones(4)}, ValueError, r"query_bias should have shape \(8,\).* but has \(4,\)"),
        ({"key_bias": torch.ones(4, 1)}, ValueError, r"key_bias should have shape \(4,\).* but has \(4, 1\)"),
        ({"key_bias": 1.0}, TypeError, "key_bias should be a tensor of floating-point numbers, but is float"),
    ],
)
def test_bad_input(given: dict, error: type[Exception], message: str) -> None:
    query, key = torch.ones(8, 3), torch.ones(4, 3)
    good = {"query": query, "key": key, "max_logits": torch.full((4,), 1e3)}
    with pytest.raises(error, match=f"qk_clip_: .*{message}"):
        qk_clip_(**{**good, **given})
    assert (query == 1).all()
    assert (key == 1).all()
