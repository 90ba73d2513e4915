"""What holds of every rule for matrices."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import orthon
from orthon.algorithms.whole_matrix import POLAR_OPTIONS
from orthon.testing.formulas import start
from orthon.testing.gradients import KINDS, sequence
from tests.support.references import run

RULES = ["Muon", "NorMuon", "Dion2", "Dion3"]
WITH_DION = ["Dion", *RULES]


@pytest.mark.parametrize("rule", WITH_DION)
def test_a_float16_state_saturates_instead_of_overflowing(rule: str) -> None:
    param = nn.Parameter(torch.zeros(6, 6))
    optimizer = getattr(orthon, rule)([param], state_dtype=torch.float16)
    for _ in range(5):
        param.grad = torch.full((6, 6), 6e4)
        optimizer.step()
    assert optimizer.state[param]["momentum"].isfinite().all()
    assert param.isfinite().all()


@pytest.mark.parametrize("rule", WITH_DION)
def test_the_same_update_for_gradients_of_any_scale(rule: str) -> None:
    gradients = sequence("full_rank", 12, 20, 4)
    expected = run(rule.lower(), gradients, {}, torch.float32).found
    tolerance = 1e-4 if rule == "Dion" else 1e-5
    for scale in (1e-30, 1e-10, 1e20):
        X = run(rule.lower(), [scale * g for g in gradients], {}, torch.float32).found
        torch.testing.assert_close(X, expected, rtol=tolerance, atol=1e-5, msg=lambda m, s=scale: f"scale {s}: {m}")


@pytest.mark.parametrize("rule", WITH_DION)
def test_a_zero_gradient_changes_nothing_but_by_decay(rule: str) -> None:
    param = nn.Parameter(torch.randn(5, 4))
    before = param.detach().clone()
    optimizer = getattr(orthon, rule)([("w", param)], lr=0.1, weight_decay=0.0)
    Q = optimizer.members()[0].new_state().get("Q")
    for _ in range(2):
        param.grad = torch.zeros(5, 4)
        optimizer.step()
    assert torch.equal(param, before)
    if Q is not None:
        assert torch.equal(optimizer.state[param]["Q"], Q)
    assert not any(value.any() for key, value in optimizer.state[param].items() if key != "Q")


@pytest.mark.filterwarnings("ignore:.*no parameter has a gradient:UserWarning")
@pytest.mark.parametrize("rule", WITH_DION)
def test_matrices_of_one_shape_are_updated_as_if_each_were_alone(rule: str) -> None:
    starts = [torch.randn(8, 6, dtype=torch.float64) for _ in range(5)]
    together = [nn.Parameter(start.clone()) for start in starts]
    alone = [nn.Parameter(start.clone()) for start in starts]
    names = [f"layer {i}" for i in range(5)]
    make = getattr(orthon, rule)
    optimizers = [make(zip(names, together, strict=True))] + [make([pair]) for pair in zip(names, alone, strict=True)]
    for step in range(4):
        for i, (a, b) in enumerate(zip(together, alone, strict=True)):
            # In step 2 some have no gradient, so that the batch is another one.
            a.grad = b.grad = None if step == 2 and i % 2 else torch.randn(8, 6, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.step()
    atol = 1e-13 if rule == "Dion" else 1e-12
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda m, i=i: f"matrix {i}: {m}")


@pytest.mark.parametrize("polar", ["polar_express", "newton_schulz", "svd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_rows_and_columns_without_gradients_decay_also_if_that_is_cautious(
    rule: str, dtype: torch.dtype, polar: str
) -> None:
    """No rounding noise takes them for updated ones, and NorMuon does not raise it to their size."""
    for shape in ((9, 14), (14, 9), (10, 10)):
        param = nn.Parameter(start(shape, dtype))
        optimizer = getattr(orthon, rule)([param], lr=0.25, weight_decay=0.5, cautious_weight_decay=True, polar=polar)
        expected = param.detach().clone()
        for gradient in sequence("full_rank", *shape, 4):
            gradient[::3] = gradient[:, 1] = 0
            param.grad = gradient.to(dtype)
            optimizer.step()
            expected -= 0.125 * expected
        for part, its in ((param[::3], expected[::3]), (param[:, 1], expected[:, 1])):
            torch.testing.assert_close(part.detach(), its, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("rule", WITH_DION)
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_tensor_lr_and_closures(nonfinite: str, rule: str) -> None:
    results = []
    for lr in (0.25, torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)):
        param = nn.Parameter(start((9, 7), torch.float64))
        exact = {} if rule == "Dion" else {"polar": "svd"}
        optimizer = getattr(orthon, rule)([param], lr=lr, nonfinite=nonfinite, **exact)

        def closure(param: Tensor = param, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (param.sin() @ torch.arange(7.0).double()).square().sum()
            loss.backward()
            return loss

        before = closure()
        losses = [optimizer.step(closure) for _ in range(3)]
        assert losses[0] == before
        results.append(param.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("rule", WITH_DION)
def test_skipped_steps_leave_weights_and_state_as_they_are(rule: str) -> None:
    def make() -> tuple[dict[str, nn.Parameter], Any]:
        params = {name: nn.Parameter(start(s, torch.float32)) for name, s in {"a": (6, 9), "b": (9, 6)}.items()}
        experts = nn.Parameter(start((3, 4, 5), torch.float32))
        random = {"selection": "random"} if rule in ("Dion2", "Dion3") else {}
        groups = [
            {"params": list(params.items())},
            {"params": [("e", experts)], "view": orthon.MatrixView(transposed=True), **random},
        ]
        params["e"] = experts
        options = {"cautious_weight_decay": True} if rule == "Muon" else {}
        return params, getattr(orthon, rule)(groups, nonfinite="skip", lr=0.1, **options)

    def step(params: dict[str, nn.Parameter], optimizer: Any, seed: int, bad: float | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=generator)
        if bad is not None:
            params["b"].grad[2, 1] = bad
        optimizer.step()

    (params, optimizer), (expected, plain) = make(), make()
    for seed in range(4):
        if seed in (0, 2):
            before = {
                (name, key): value.clone()
                for name, p in params.items()
                for key, value in {"": p.detach(), **optimizer.state.get(p, {})}.items()
            }
            step(params, optimizer, 100 + seed, math.inf if seed else math.nan)
            for (name, key), value in before.items():
                assert torch.equal(optimizer.state[params[name]][key] if key else params[name], value), (name, key)
        step(params, optimizer, seed)
        step(expected, plain, seed)
    assert optimizer.skipped_steps == 2
    for name in params:
        assert torch.equal(params[name], expected[name]), name
        for key, value in plain.state[expected[name]].items():
            assert torch.equal(optimizer.state[params[name]][key], value), (name, key)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    fraction=st.floats(0.01, 1),
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 1000),
)
def test_any_small_matrix(rule: str, m: int, n: int, fraction: float, kind: str, seed: int) -> None:
    """The squared Frobenius norm of the update is the number of directions that the momentum has."""
    options: dict[str, Any] = {"fraction": fraction} if "Dion" in rule else {}
    param = nn.Parameter(torch.zeros(m, n))
    optimizer = getattr(orthon, rule)([param], lr=1.0, weight_decay=0.0, adjust_lr_fn="none", polar="svd", **options)
    most = min(m, n)
    if "Dion" in rule:
        most = min(most, math.ceil(fraction * (m if rule == "Dion3" else most)))
    for gradient in sequence(kind, m, n, 3, seed):
        before = param.detach().clone()
        param.grad = gradient.float()
        optimizer.step()
        directions = (param.detach() - before).square().sum().item()
        assert directions <= most * 1.001
        assert abs(directions - round(directions)) < 1e-2, f"update of squared norm {directions}"


def test_the_options_of_the_polar_factor_are_passed_on() -> None:
    assert set(POLAR_OPTIONS) == {"polar", "polar_steps", "polar_dtype"}
    results = {}
    for rule in RULES:
        for polar, steps in (("svd", 5), ("newton_schulz", 5), ("newton_schulz", 2)):
            param = nn.Parameter(start((6, 8), torch.float64))
            param.grad = start((6, 8), torch.float64)
            getattr(orthon, rule)([param], polar=polar, polar_steps=steps).step()
            results[rule, polar, steps] = param.detach()
        assert not torch.equal(results[rule, "svd", 5], results[rule, "newton_schulz", 5]), rule
        assert not torch.equal(results[rule, "newton_schulz", 2], results[rule, "newton_schulz", 5]), rule
        param = nn.Parameter(start((6, 8), torch.float64))
        param.grad = start((6, 8), torch.float64)
        getattr(orthon, rule)([param], polar="newton_schulz", polar_dtype=torch.bfloat16).step()
        error = (param - results[rule, "newton_schulz", 5]).abs().max().item()
        assert 1e-9 < error < 1e-2, f"{rule}: computed in bfloat16"
