"""Every rule against its float64 reference."""

from typing import Any

import pytest
import torch

from orthon.testing.formulas import run_both, start
from orthon.testing.gradients import sequence
from orthon.testing.references import REFERENCES
from tests.rules_table import GRADIENTS, OPTIONS, POLAR_RULES, SHAPES, STEPS
from tests.support.closeness import assert_close
from tests.support.references import run

MATRIX_RULES = ["dion", *POLAR_RULES]

# Without momentum, error feedback takes all of a rank-1 gradient out of M but for amplified rounding noise, which
# the next step cannot tell from a small gradient.
TOLERANCE_64 = {("dion", "no momentum", "rank_1"): 1e-2}
# In float32 a small direction beside one that is 10⁴ or 10⁵ times larger is known to two or three digits.
DION_32 = {"one_huge_singular_value": 2e-2, "uneven_rows": 2e-3}
# Where P leaves out little, the lengths of the tail's columns are small differences of squares.
TAIL_32 = {**DION_32, "rank_1": 2e-3}
POLAR_32 = {"one_huge_singular_value": 2e-2, "uneven_rows": 1e-3}


def cases(*rules: str) -> list[tuple[str, str]]:
    return [(rule, options) for rule in rules for options in OPTIONS[rule]]


def float64_cases() -> list[object]:
    """Return all combinations. The short run has two shapes of each with other options than the defaults."""
    table = []
    for i, (rule, options) in enumerate(cases(*MATRIX_RULES)):
        for j, shape in enumerate(SHAPES):
            for k, kind in enumerate(GRADIENTS):
                short = options == "defaults" or (i + j + k) % len(SHAPES) < 2
                table.append(pytest.param(shape, rule, options, kind, marks=[] if short else [pytest.mark.long]))
    return table


@pytest.mark.usefixtures("wide_moments")
@pytest.mark.parametrize(("shape", "rule", "options", "kind"), float64_cases())
def test_agrees_with_the_reference_in_float64(shape: str, rule: str, options: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    both = run(rule, gradients, OPTIONS[rule][options])
    case = f"{rule}, {shape}, {options}, {kind}"
    tolerance = TOLERANCE_64.get((rule, options, kind), 1e-10)
    expected, state = both.expected_state, both.state
    assert_close(both.found, both.expected, tolerance, f"{case}: X")
    assert_close(state["momentum"], expected["momentum"], tolerance, f"{case}: momentum", sum(gradients))
    if "row_moment" in state:
        assert_close(state["row_moment"], expected["row_moment"], 1e-10, f"{case}: row moments")
    if "Q" in state and tolerance == 1e-10:
        assert_close(state["Q"], expected["Q"], 1e-8, f"{case}: Q")


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("rule", ["normuon", "dion3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_row_moments_in_float32(shape: str, rule: str, kind: str) -> None:
    both = run(rule, sequence(kind, *SHAPES[shape], STEPS), {})
    assert both.state["row_moment"].dtype == torch.float32
    case = f"{rule}, {shape}, {kind}"
    assert_close(both.found, both.expected, 1e-7, f"{case}: X")
    assert_close(both.state["row_moment"], both.expected_state["row_moment"], 1e-6, f"{case}: row moments")


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("options", ["defaults", "the paper's", "full rank", "orthonormalize", "polar", "long side"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dion_agrees_with_the_reference_in_float32(shape: str, options: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    both = run("dion", gradients, OPTIONS["dion"][options], torch.float32)
    case = f"{shape}, {options}, {kind}"
    tolerance = (TAIL_32 if options == "defaults" else DION_32).get(kind, 1e-4)
    assert_close(both.found, both.expected, tolerance, f"{case}: X")
    expected = both.expected_state["momentum"]
    assert_close(both.state["momentum"], expected, tolerance, f"{case}: momentum", sum(gradients))


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("rule", POLAR_RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_others_agree_with_the_reference_in_float32(shape: str, rule: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    both = run(rule, gradients, {"lr": 0.1}, torch.float32)
    case = f"{rule}, {shape}, {kind}"
    assert_close(both.found, both.expected, POLAR_32.get(kind, 1e-5), f"{case}: X")
    expected = both.expected_state["momentum"]
    assert_close(both.state["momentum"], expected, 1e-5, f"{case}: momentum", sum(gradients))


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", MATRIX_RULES)
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_any_dtypes_of_weights_and_state(
    shape: str, rule: str, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    options: dict[str, Any] = {"state_dtype": state_dtype, "lr": 0.1}
    if rule == "dion":
        options["rank_fraction"] = 0.5
    elif rule in ("dion2", "dion3"):  # all rows, for which of them are largest would depend on how they are rounded
        options["fraction"] = 1.0
    gradients = [1e-3 * g for g in sequence("full_rank", *SHAPES[shape], STEPS)]
    both = run(rule, gradients, options, dtype)
    stored = state_dtype or dtype
    assert {both.state[key].dtype for key in ("momentum", "Q") if key in both.state} == {stored}
    assert both.found.dtype == dtype
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(stored).eps)
    case = f"{shape}, {rule}, {dtype}, {state_dtype}: X"
    if rule == "dion":  # 16-bit factors turn by a few epsilon in every step, and each step starts from them
        moved = both.expected - start(SHAPES[shape], torch.float64)
        assert_close(both.found, both.expected, 20 * coarsest, case, moved.abs() + both.found.double().abs())
    else:  # the polar factor turns by the error of the momentum over its least singular value
        assert_close(both.found, both.expected, 5 * max(coarsest, 1e-7), case)


@pytest.mark.parametrize("kind", ["full_rank", "zero", "live_rows", "tiny", "huge"])
@pytest.mark.parametrize("lr", [None, torch.float64], ids=["number", "tensor"])
@pytest.mark.parametrize(("rule", "options"), cases("adamw", "lion"))
def test_elementwise_rules_agree_with_the_reference(rule: str, options: str, lr: torch.dtype | None, kind: str) -> None:
    chosen = dict(OPTIONS[rule][options])
    if lr is not None:
        chosen["lr"] = torch.tensor(chosen.get("lr", 0.01), dtype=lr)
    both = run_both(rule, REFERENCES[rule], sequence(kind, 6, 5, 6), chosen)
    torch.testing.assert_close(both.found, both.expected, rtol=0, atol=1e-12)
    for key, expected in both.expected_state.items():
        torch.testing.assert_close(both.state[key].double(), expected, rtol=1e-10, atol=0)
