"""Muon, NorMuon, Dion2 and Dion3 against their float64 references, and Muon against torch's."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import orthon
from orthon.algorithms.polar_factor import POLAR_OPTIONS
from orthon.testing.gradients import KINDS, sequence
from tests import reference
from tests.support.closeness import assert_close

STEPS = 5
SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (16, 16), "one row": (1, 12), "one column": (12, 1)}
DECAY = {"weight_decay": 0.5, "lr": 0.05}
CAUTIOUS = {**DECAY, "cautious_weight_decay": True}
RULES = ["Muon", "NorMuon", "Dion2", "Dion3"]
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "Muon": {
        "defaults": {},
        "not nesterov": {"nesterov": False},
        "ema": {"ema": True},
        "ema, not nesterov": {"ema": True, "nesterov": False, "momentum": 0.5},
        "no momentum": {"momentum": 0.0},
        "maximize": {"maximize": True, "ema": True},
        "no decay, original": {"weight_decay": 0.0, "lr_scale": "original"},
        "much decay, match_rms_adamw": {**DECAY, "lr_scale": "match_rms_adamw"},
        "cautious decay, unscaled": {**CAUTIOUS, "lr_scale": "none"},
        "cautious decay, maximize": {**CAUTIOUS, "maximize": True},
    },
    "NorMuon": {
        "defaults": {},
        "ema, not nesterov": {"ema": True, "nesterov": False},
        "no memory of rows": {"beta2": 0.0, "lr_scale": "original"},
        "long memory of rows, large eps": {"beta2": 0.999, "eps": 1e-3, "lr_scale": "match_rms_adamw"},
        "maximize": {"maximize": True, "momentum": 0.0},
        "cautious decay": CAUTIOUS,
    },
    "Dion2": {
        "defaults": {},
        "all rows": {"fraction": 1.0},
        "one row": {"fraction": 1e-3},
        "scaled by the fraction": {"fraction": 0.3, "lr_scale_by_fraction": True, "lr_scale": "original"},
        "no momentum": {"momentum": 0.0, "fraction": 0.5},
        "maximize": {"maximize": True, "momentum": 0.5},
        "much decay, match_rms_adamw": {**DECAY, "lr_scale": "match_rms_adamw"},
        "cautious decay, unscaled": {**CAUTIOUS, "lr_scale": "none", "fraction": 0.6},
    },
    "Dion3": {
        "defaults": {},
        "all rows": {"fraction": 1.0},
        "one row": {"fraction": 1e-3, "lr_scale": "original"},
        "scaled by the fraction": {"fraction": 0.3, "lr_scale_by_fraction": True},
        "no memory of rows": {"beta2": 0.0, "fraction": 0.5},
        "long memory of rows, large eps": {"beta2": 0.999, "eps": 1e-3, "lr_scale": "match_rms_adamw"},
        "maximize": {"maximize": True, "momentum": 0.0},
        "cautious decay": {**CAUTIOUS, "fraction": 0.6},
    },
}
CASES = [(rule, options) for rule in RULES for options in OPTIONS[rule]]


def start(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def run(
    rule: str, gradients: list[Tensor], options: dict[str, Any], dtype: torch.dtype = torch.float64
) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Run the reference and the package, with exact polar factors, on the same gradients."""
    X = start(gradients[0].shape, dtype)
    param = nn.Parameter(X.clone())
    optimizer = getattr(orthon, rule)([("w", param)], polar="svd", **options)
    expected = getattr(reference, rule)(X, **{k: v for k, v in options.items() if k != "state_dtype"})
    for gradient in gradients:
        param.grad = gradient.to(dtype)
        expected.step(param.grad)
        optimizer.step()
    return expected, param.detach(), optimizer.state[param]


@pytest.mark.usefixtures("wide_moments")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rule", "options"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_in_float64(shape: str, rule: str, options: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    expected, X, state = run(rule, gradients, OPTIONS[rule][options])
    case = f"{rule}, {shape}, {options}, {kind}"
    assert_close(X, expected.X, 1e-10, f"{case}: X")
    assert_close(state["momentum"], expected.M, 1e-10, f"{case}: momentum", sum(gradients))
    if "row_moment" in state:
        assert_close(state["row_moment"], expected.v, 1e-10, f"{case}: row moments")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["NorMuon", "Dion3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_row_moments_in_float32(shape: str, rule: str, kind: str) -> None:
    expected, X, state = run(rule, sequence(kind, *SHAPES[shape], STEPS), {})
    assert state["row_moment"].dtype == torch.float32
    assert_close(X, expected.X, 1e-7, f"{rule}, {shape}, {kind}: X")
    assert_close(state["row_moment"], expected.v, 1e-6, f"{rule}, {shape}, {kind}: row moments")


# In float32 a small direction beside one that is 10⁵ times larger is known to two digits.
TOLERANCE_32 = {"one_huge_singular_value": 2e-2, "uneven_rows": 1e-3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_in_float32(shape: str, rule: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    expected, X, state = run(rule, gradients, {"lr": 0.1}, torch.float32)
    case = f"{rule}, {shape}, {kind}"
    assert_close(X, expected.X, TOLERANCE_32.get(kind, 1e-5), f"{case}: X")
    assert_close(state["momentum"], expected.M, 1e-5, f"{case}: momentum", sum(gradients))


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_any_dtypes_of_weights_and_state(
    shape: str, rule: str, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    # All rows, for which of them are largest would depend on how they are rounded.
    options = {"state_dtype": state_dtype, "lr": 0.1, **({"fraction": 1.0} if "Dion" in rule else {})}
    gradients = [1e-3 * g for g in sequence("full_rank", *SHAPES[shape], STEPS)]
    expected, X, state = run(rule, gradients, options, dtype)
    assert state["momentum"].dtype == (state_dtype or dtype)
    assert X.dtype == dtype
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(state_dtype or dtype).eps, 1e-7)
    # The polar factor turns by the error of the momentum over its least singular value.
    assert_close(X, expected.X, 5 * coarsest, f"{rule}, {shape}, {dtype}, {state_dtype}: X")


@pytest.mark.parametrize("rule", RULES)
def test_a_float16_state_saturates_instead_of_overflowing(rule: str) -> None:
    param = nn.Parameter(torch.zeros(6, 6))
    optimizer = getattr(orthon, rule)([param], state_dtype=torch.float16)
    for _ in range(5):
        param.grad = torch.full((6, 6), 6e4)
        optimizer.step()
    assert optimizer.state[param]["momentum"].isfinite().all()
    assert param.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_the_same_update_for_gradients_of_any_scale(rule: str) -> None:
    gradients = sequence("full_rank", 12, 20, 4)
    expected = run(rule, gradients, {}, torch.float32)[1]
    for scale in (1e-30, 1e-10, 1e20):
        X = run(rule, [scale * g for g in gradients], {}, torch.float32)[1]
        torch.testing.assert_close(X, expected, rtol=1e-5, atol=1e-5, msg=lambda m, s=scale: f"scale {s}: {m}")


@pytest.mark.parametrize("rule", RULES)
def test_a_zero_gradient_changes_nothing_but_by_decay(rule: str) -> None:
    param = nn.Parameter(torch.randn(5, 4))
    before = param.detach().clone()
    optimizer = getattr(orthon, rule)([param], lr=0.1, weight_decay=0.0)
    for _ in range(2):
        param.grad = torch.zeros(5, 4)
        optimizer.step()
    assert torch.equal(param, before)
    assert not any(value.any() for value in optimizer.state[param].values())


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


@pytest.mark.parametrize("rule", RULES)
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
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda m, i=i: f"matrix {i}: {m}")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_tensor_lr_and_closures(nonfinite: str, rule: str) -> None:
    results = []
    for lr in (0.25, torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)):
        param = nn.Parameter(start((9, 7), torch.float64))
        optimizer = getattr(orthon, rule)([param], lr=lr, polar="svd", nonfinite=nonfinite)

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


@pytest.mark.parametrize("rule", RULES)
def test_skipped_steps_leave_weights_and_state_as_they_are(rule: str) -> None:
    def make() -> tuple[dict[str, nn.Parameter], Any]:
        params = {name: nn.Parameter(start(s, torch.float32)) for name, s in {"a": (6, 9), "b": (9, 6)}.items()}
        experts = nn.Parameter(start((3, 4, 5), torch.float32))
        random = {"selection": "random"} if "Dion" in rule else {}
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


# Against torch's


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both iterate in float32, torch's where it asks for bfloat16, ours also on CPUs that are fast at that."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.float().clone())  # which is then divided in place
    monkeypatch.setattr("orthon.algorithms.polar_factor.polar_dtype", lambda *_: torch.float32)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param({}, {}, id="defaults"),
        pytest.param({"nesterov": False}, {}, id="not nesterov"),
        pytest.param({"momentum": 0.5}, {}, id="momentum 0.5"),
        pytest.param({"momentum": 0.0}, {}, id="no momentum"),
        pytest.param({"weight_decay": 0.0}, {}, id="no decay"),
        pytest.param({"weight_decay": 3.0, "lr": 0.05}, {}, id="much decay"),
        pytest.param({"adjust_lr_fn": "original"}, {}, id="original"),
        pytest.param({"adjust_lr_fn": "match_rms_adamw"}, {"lr_scale": "match_rms_adamw"}, id="match_rms_adamw"),
        pytest.param({"ns_steps": 1}, {"polar_steps": 1}, id="1 step"),
        pytest.param({"ns_steps": 3}, {"polar_steps": 3}, id="3 steps"),
        pytest.param({"ns_steps": 8}, {"polar_steps": 8}, id="8 steps"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_muon_is_torchs(shape: tuple[int, int], theirs: dict[str, Any], ours: dict[str, Any], ema: bool) -> None:
    common = {"lr": 0.02, "weight_decay": 0.1}
    a, b = nn.Parameter(start(shape, torch.float32)), nn.Parameter(start(shape, torch.float32))
    shared = {k: v for k, v in theirs.items() if k not in ("adjust_lr_fn", "ns_steps")}
    optimizers = (
        torch.optim.Muon([a], **{**common, **theirs}),
        orthon.Muon([b], **{**common, "lr_scale": "original", "polar": "newton_schulz", "ema": ema, **shared, **ours}),
    )
    for step, gradient in enumerate(sequence("full_rank", *shape, 10)):
        a.grad, b.grad = gradient.float(), gradient.float()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5, msg=lambda m, s=step: f"step {s}: {m}")
    if ema:
        buffer = optimizers[0].state[a]["momentum_buffer"]
        torch.testing.assert_close(optimizers[1].state[b]["momentum"], buffer, rtol=0, atol=1e-6)


# What belongs to Dion2 and Dion3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_dion2_of_all_rows_is_muon(kind: str, shape: tuple[int, int]) -> None:
    """Only the stored momentum is multiplied earlier."""
    gradients = sequence(kind, *shape, STEPS)
    options = {"momentum": 0.9, "lr": 0.1}
    _, muon, of_muon = run("Muon", gradients, {**options, "nesterov": False})
    _, dion2, of_dion2 = run("Dion2", gradients, {**options, "fraction": 1.0})
    case = f"{kind}, {shape}"
    assert_close(dion2, muon, 1e-12, case)
    assert_close(of_dion2["momentum"], 0.9 * of_muon["momentum"], 1e-12, f"{case}: momentum")
    if shape[0] <= shape[1] and kind not in ("live_rows", "uneven_rows"):
        _, normuon, _ = run("NorMuon", gradients, {**options, "nesterov": False})
        _, dion3, _ = run("Dion3", gradients, {**options, "fraction": 1.0})
        assert_close(dion3, normuon, 1e-7, f"{case}: Dion3 and NorMuon")


def changed(before: Tensor, after: Tensor) -> list[int]:
    """Return which rows differ, or columns of a tall matrix."""
    differs = before != after
    return differs.any(dim=int(before.shape[0] <= before.shape[1])).nonzero().flatten().tolist()


def selections(
    names: list[str], shape: tuple[int, int], steps: int, rule: str = "Dion2", **options: Any
) -> list[list[list[int]]]:
    """Return the rows of each step and parameter."""
    params = [nn.Parameter(start(shape, torch.float64)) for _ in names]
    optimizer = getattr(orthon, rule)(
        zip(names, params, strict=True), **{"weight_decay": 0.0, "polar": "svd", **options}
    )
    found = []
    for _ in range(steps):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn(shape, dtype=torch.float64)
        optimizer.step()
        found.append([changed(b, p.detach()) for b, p in zip(before, params, strict=True)])
    return found


@pytest.mark.parametrize("rule", ["Dion2", "Dion3"])
@pytest.mark.parametrize("selection", ["global", "local", "random"])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (40, 40), (1, 7), (7, 1)])
@pytest.mark.parametrize("fraction", [1e-6, 0.24, 0.25, 0.26, 0.5, 1])
def test_how_many_rows(fraction: float, shape: tuple[int, int], selection: str, rule: str) -> None:
    found = selections(["w"], shape, 2, rule, fraction=fraction, selection=selection)
    expected = max(1, math.ceil(fraction * min(shape)))
    assert [len(rows) for step in found for rows in step] == [expected] * 2


def test_random_rows_are_a_function_of_seed_name_and_step() -> None:
    options = {"selection": "random"}
    torch.manual_seed(0)
    found = selections(["a", "b"], (40, 50), 8, **options)
    torch.manual_seed(1)
    assert selections(["b", "a"], (40, 50), 8, **options) == [step[::-1] for step in found]
    assert selections(["a"], (40, 50), 8, **options) == [step[:1] for step in found]
    assert selections(["a"], (50, 40), 8, **options) == [step[:1] for step in found]  # columns
    assert selections(["a"], (40, 50), 8, seed=1, **options) != [step[:1] for step in found]
    for i in range(2):
        rows = [step[i] for step in found]
        for earlier, later in pairwise(rows):
            assert earlier != later
        # 80 draws of 10 in 40: each row is expected twice, and a row that never comes is rare.
        assert len({row for of_step in rows for row in of_step}) > 30
    assert all(step[0] != step[1] for step in found)


def test_random_rows_leave_the_global_random_state_untouched() -> None:
    param = nn.Parameter(torch.zeros(8, 8))
    optimizer = orthon.Dion2([param], selection="random")
    param.grad = torch.randn(8, 8)
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", ["Dion2", "Dion3"])
@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
def test_random_rows_agree_with_the_reference(shape: str, rule: str) -> None:
    options = {"fraction": 0.3, "selection": "random"}
    rows = [step[0] for step in selections(["w"], SHAPES[shape], STEPS, **options)]
    gradients = sequence("full_rank", *SHAPES[shape], STEPS)
    param = nn.Parameter(start(SHAPES[shape], torch.float64))
    optimizer = getattr(orthon, rule)([("w", param)], polar="svd", **options)
    expected = getattr(reference, rule)(param.detach(), fraction=0.3, rows=rows)
    for gradient in gradients:
        param.grad = gradient
        optimizer.step()
        expected.step(gradient)
    assert_close(param.detach(), expected.X, 1e-10 if rule == "Dion2" else 1e-7, f"{rule}, {shape}")
    assert optimizer.state[param]["step"] == STEPS


@pytest.mark.parametrize("shape", [(30, 70), (70, 30)], ids=["rows", "columns"])
def test_the_rows_do_not_depend_on_the_order_of_summation(shape: tuple[int, int]) -> None:
    """All rows have the same numbers, each in an order of its own: the first are taken, however they are summed."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.logspace(0, -9, 70, dtype=torch.float64)
    for _ in range(20):
        rows = torch.stack([numbers[torch.randperm(70, generator=generator)] for _ in range(30)])
        for dtype in (torch.float64, torch.float32):
            param = nn.Parameter(torch.zeros(shape, dtype=dtype))
            param.grad = (rows if shape[0] == 30 else rows.T).to(dtype)
            orthon.Dion2([param], polar="svd").step()
            found = param.detach().abs().sum(dim=int(shape[0] == 30)).nonzero().flatten().tolist()
            assert found == list(range(8))


def test_rows_that_wait_are_selected_in_the_end() -> None:
    """Rows without an update keep all of their momentum, and grow."""
    param = nn.Parameter(torch.zeros(12, 12))
    optimizer = orthon.Dion2([param], weight_decay=0.0, fraction=0.1, momentum=0.5)
    gradient = torch.logspace(0, -0.5, 12)[:, None] * torch.randn(12, 12)
    for _ in range(60):
        param.grad = gradient.clone()
        optimizer.step()
    assert param.any(dim=1).all()


def test_rows_have_one_size_in_time() -> None:
    """NorMuon's rows all reach the same root mean square, where Muon's stay as uneven as the gradient makes them."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.linspace(1, 0.05, 16, dtype=torch.float64)[:, None]
    sizes = {}
    for rule in ("Muon", "NorMuon"):
        param = nn.Parameter(torch.zeros(16, 8, dtype=torch.float64))
        optimizer = getattr(orthon, rule)([param], lr=1.0, weight_decay=0.0, lr_scale="none", momentum=0.0, polar="svd")
        for _ in range(200):
            before = param.detach().clone()
            param.grad = wide * torch.randn(16, 8, generator=generator, dtype=torch.float64)
            optimizer.step()
        update = param.detach() - before
        assert update.norm() == pytest.approx(8**0.5)  # of eight orthonormal directions
        sizes[rule] = optimizer.state[param].get("row_moment", update.square().mean(1))
        if rule == "NorMuon":
            rows = update.square().mean(1).sqrt()
            assert rows.max() / rows.min() < 4
        else:
            rows = update.square().mean(1).sqrt()
            assert rows.max() / rows.min() > 4


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
    optimizer = getattr(orthon, rule)([param], lr=1.0, weight_decay=0.0, lr_scale="none", polar="svd", **options)
    most = math.ceil(fraction * min(m, n)) if "Dion" in rule else min(m, n)
    for gradient in sequence(kind, m, n, 3, seed):
        before = param.detach().clone()
        param.grad = gradient.float()
        optimizer.step()
        directions = (param.detach() - before).square().sum().item()
        assert directions <= most * 1.001
        assert abs(directions - round(directions)) < 1e-2, f"update of squared norm {directions}"


def test_the_options_of_the_polar_factor_are_passed_on() -> None:
    assert set(POLAR_OPTIONS) == {"polar", "polar_steps", "polar_route", "polar_dtype"}
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
