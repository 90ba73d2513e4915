"""Steps whose large products are in another dtype than the state, against float64."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from orthon.algorithms.dion import PAPER
from orthon.testing.formulas import start
from orthon.testing.gradients import sequence
from tests.support.closeness import assert_close
from tests.support.references import run

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
STEPS = 4

# Relative to how far the weights have moved. The error of a step is a few epsilon of its update, and it turns the
# factors from which the next step starts.
PRODUCT_ERROR = {BF16: 0.05, F32: 3e-4, F64: 0.0}

KINDS = ("full_rank", "rank_1", "live_rows", "zero_at_first", "tiny", "huge")
SHAPES = ((24, 10), (260, 300), (10, 24), (300, 260))
DTYPES = ((BF16, F32), (BF16, F64), (F32, F64), (F64, F32))


def cases() -> Iterator[Any]:
    """Yield all combinations. Not long are those of the usual dtypes with most kinds and shapes, and two of others."""
    for kind, shape, (dtype, storage) in product(KINDS, SHAPES, DTYPES):
        usual = (dtype, storage) == DTYPES[0] and (kind == "full_rank" or shape in SHAPES[:2])
        others = kind in ("full_rank", "live_rows") and shape == SHAPES[kind == "live_rows"]
        yield pytest.param(kind, shape, dtype, storage, marks=() if usual or others else pytest.mark.long)


@pytest.mark.parametrize(("kind", "shape", "dtype", "storage"), list(cases()), ids=str)
def test_products_in_another_dtype(kind: str, shape: tuple[int, int], dtype: torch.dtype, storage: torch.dtype) -> None:
    """The state is kept as it is stored, and each product is as exact as its own dtype."""
    gradients = sequence(kind, *shape, STEPS)
    for more in (
        {},
        PAPER,
        {**PAPER, "right_factor": "orthonormalize"},
        {**PAPER, "cautious_weight_decay": True},
        {**PAPER, "nonfinite": "skip"},
    ):
        options: dict[str, Any] = {"product_dtype": dtype, "rank_fraction": 0.25, **more}
        nonfinite = options.pop("nonfinite", "raise")
        both = run("dion", gradients, options, storage, nonfinite=nonfinite)
        assert both.state["momentum"].dtype == storage
        if kind == "rank_1" and "tail" not in more and BF16 in (dtype, storage):
            continue  # what P leaves out is about as small as the rounding noise, and the tail has the length of noise
        coarsest, moved = max(PRODUCT_ERROR[dtype], PRODUCT_ERROR[storage]), both.expected - start(shape, storage)
        assert_close(both.found, both.expected, coarsest, f"{kind}, {shape}, {dtype} for {storage}, {more}", moved)


@pytest.mark.parametrize("shape", [(24, 10), (30, 40)], ids=str)
def test_rounding_of_the_state_is_no_direction(shape: tuple[int, int]) -> None:
    """Of a momentum in float16, all but one direction is what its entries have been rounded by."""
    both = run("dion", sequence("rank_1", *shape, STEPS), {"state_dtype": F16, "rank_fraction": 0.5}, F32)
    assert_close(both.found, both.expected, 0.05, str(shape), both.expected - start(shape, F32))
