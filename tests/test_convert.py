"""States of other packages' optimizers: going on with orthon is going on with theirs.

tests/support/foreign_rules.py stands for packages that are not installed.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon.saving.convert import convert_state, convert_states
from orthon.testing.gradients import sequence
from tests.support.closeness import assert_close
from tests.support.foreign_groups import KELLER, MOONLIGHT, of_microsoft, torch_muon
from tests.support.foreign_rules import keller_adam, keller_muon, microsoft, moonlight
from tests.test_muon import in_float32  # noqa: F401

SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (16, 16)}
BEFORE, AFTER = 3, 3


def start(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def resumed(conversion: dict[str, Any], params: list[nn.Parameter], **changes: Any) -> orthon.MixedOptimizer:
    """Return an optimizer with the groups of a converted state, which it has loaded."""
    groups = [
        {**group, **{key: value for key, value in changes.items() if key in group}}
        for group in conversion["param_groups"]
    ]
    made = [{**group, "params": [params[i] for i in group["params"]]} for group in groups]
    optimizer = orthon.MixedOptimizer(made, algorithm="adamw", options={})
    optimizer.load_state_dict({**conversion, "param_groups": groups})
    return optimizer


def give(params: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.clone()


# torch.optim


@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(torch.optim.AdamW, {}, id="AdamW"),
        pytest.param(
            torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.5, "lr": 0.1}, id="others"
        ),
        pytest.param(torch.optim.AdamW, {"amsgrad": True, "maximize": True}, id="AMSGrad, maximize"),
        pytest.param(torch.optim.AdamW, {"foreach": True}, id="foreach"),
        pytest.param(torch.optim.AdamW, {"fused": True}, id="fused"),
        pytest.param(torch.optim.AdamW, {"lr": torch.tensor(0.1)}, id="tensor lr"),
        pytest.param(torch.optim.Adam, {}, id="Adam without decay"),
        pytest.param(torch.optim.Adam, {"weight_decay": 0.5, "decoupled_weight_decay": True}, id="Adam, decoupled"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_adamw_to_the_bit(make: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype) -> None:
    params = [nn.Parameter(start(5, 3, dtype=dtype)), nn.Parameter(start(7, dtype=dtype))]
    theirs = make(zip(("w", "b"), params, strict=True), **options)
    gradients = [[torch.randn(p.shape, dtype=dtype) for p in params] for _ in range(BEFORE + AFTER)]
    for step in gradients[:BEFORE]:
        give(params, step)
        theirs.step()
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    ours = resumed(convert_state(theirs.state_dict(), source="torch-adamw"), copies)
    assert ours.param_groups[0]["param_names"] == ["w", "b"]
    for step in gradients[BEFORE:]:
        give(params, step)
        give(copies, step)
        theirs.step()
        ours.step()
    for param, copy in zip(params, copies, strict=True):
        assert torch.equal(param, copy)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"nesterov": False}, id="not nesterov"),
        pytest.param({"momentum": 0.5, "weight_decay": 3.0, "lr": 0.05}, id="much decay"),
        pytest.param({"adjust_lr_fn": "original", "ns_steps": 3}, id="original, 3 steps"),
        pytest.param({"adjust_lr_fn": "match_rms_adamw"}, id="match_rms_adamw"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_torch_muon_with_the_same_polynomials(shape: tuple[int, int], options: dict[str, Any]) -> None:
    param = nn.Parameter(start(*shape, dtype=torch.float32))
    theirs = torch.optim.Muon([("w", param)], **options)
    gradients = [G.float() for G in sequence("full_rank", *shape, BEFORE + AFTER)]
    for G in gradients[:BEFORE]:
        give([param], [G])
        theirs.step()
    copy = nn.Parameter(param.detach().clone())
    ours = resumed(convert_state(theirs.state_dict(), source="torch-muon"), [copy])
    for step, G in enumerate(gradients[BEFORE:]):
        give([param, copy], [G, G])
        theirs.step()
        ours.step()
        torch.testing.assert_close(copy, param, rtol=0, atol=1e-5, msg=lambda m, s=step: f"step {s}: {m}")


def test_several_states_become_one() -> None:
    params = [nn.Parameter(start(*shape)) for shape in ((6, 4), (4, 6), (6,), (4,))]
    names = ["up", "down", "norm", "bias"]
    muon = torch.optim.Muon(zip(names[:2], params[:2], strict=True), lr=0.1)
    adamw = torch.optim.AdamW(
        [{"params": [(name, p)]} for name, p in zip(names[2:], params[2:], strict=True)], weight_decay=0.0
    )
    torch.optim.lr_scheduler.LambdaLR(adamw, lambda _: 0.5)
    torch.optim.lr_scheduler.OneCycleLR(muon, 0.1, total_steps=100, div_factor=2.0)
    give(params, [torch.ones_like(p) for p in params])
    params[1].grad = None
    muon.step()
    adamw.step()
    conversion = convert_states([(muon.state_dict(), "torch-muon"), (adamw.state_dict(), "torch-adamw")])
    state, groups = conversion.state_dict["state"], conversion.state_dict["param_groups"]
    assert [group["params"] for group in groups] == [[0, 1], [2], [3]]
    assert [group["param_names"] for group in groups] == [names[:2], ["norm"], ["bias"]]
    assert [group["lr"] for group in groups] == [0.05, 0.0005, 0.0005]
    assert groups[1]["initial_lr"] == 0.001
    assert groups[0]["max_lr"] == 0.1
    assert {i: set(entries) for i, entries in state.items()} == {
        0: {"momentum"},
        **{i: {"step", "exp_avg", "exp_avg_sq"} for i in (2, 3)},
    }
    assert [(g.algorithm, g.parameters, g.with_state, g.state_dict, g.group) for g in conversion.groups] == [
        ("muon", 2, 1, 0, 0),
        ("adamw", 1, 1, 1, 0),
        ("adamw", 1, 1, 1, 1),
    ]
    assert conversion.groups[0].dropped == ("ns_coefficients", "eps")
    assert conversion.groups[1].dropped == ("capturable", "differentiable", "decoupled_weight_decay")
    assert "bfloat16" in " ".join(conversion.notes)
    resumed(conversion.state_dict, params).step()


def test_names_in_place_of_numbers() -> None:
    """As in state dicts of torch.distributed.checkpoint."""
    state = {"a.w": {"momentum_buffer": start(4, 3)}}
    converted = convert_state(
        {"state": state, "param_groups": [torch_muon(params=["a.v", "a.w"])]}, source="torch-muon"
    )
    assert converted["param_groups"][0]["param_names"] == ["a.v", "a.w"]
    assert list(converted["state"]) == [1]


# Packages that are not installed


Rule = Callable[[Tensor, dict[str, Any], dict[str, Any], Tensor], Tensor]
# Of each: the source, its rule, a group, and the state of each parameter before the first step, by shape.
CASES: dict[
    str, tuple[str, Rule, dict[str, Any], Callable[[int, int], list[tuple[tuple[int, ...], dict[str, Any]]]]]
] = {
    "keller: Muon": (
        "keller-muon",
        keller_muon,
        {**KELLER, "momentum": 0.9},
        lambda m, n: [((m, n), {}), ((n, m), {})],
    ),
    "keller: with Adam, Muon": (
        "keller-muon",
        keller_muon,
        {**KELLER, "momentum": 0.9, "use_muon": True},
        lambda m, n: [((m, n), {})],
    ),
    "keller: with Adam, Adam": (
        "keller-muon",
        keller_adam,
        {**KELLER, "betas": (0.8, 0.9), "eps": 1e-10, "use_muon": False},
        lambda m, n: [((m, n), {}), ((n,), {})],
    ),
    "moonlight": (
        "moonlight-muon",
        moonlight,
        MOONLIGHT,
        lambda m, n: [((m, n), {"use_muon": True}), ((n,), {"use_muon": False})],
    ),
    "moonlight: not nesterov, the other way round": (
        "moonlight-muon",
        moonlight,
        {**MOONLIGHT, "nesterov": False},
        lambda m, n: [((m,), {"use_muon": False}), ((n, m), {"use_muon": True}), ((m, n), {"use_muon": True})],
    ),
    "microsoft: dion": (
        "microsoft-dion",
        microsoft,
        of_microsoft("dion"),
        lambda m, n: [((m, n), {"Q": start(min(m, n), rank(m, n))}), ((n, m), {"Q": start(min(m, n), rank(m, n))})],
    ),
    "microsoft: dion, sharded by rows": (
        "microsoft-dion",
        microsoft,
        of_microsoft("dion", rank_fraction=1.0),
        lambda m, n: [((m, n), {"Q": start(m, min(m, n))})] + [((n, m), {"Q": start(n, min(m, n))})] * (m != n),
    ),
    **{
        f"microsoft: {algorithm}, {options}": (
            "microsoft-dion",
            microsoft,
            of_microsoft(algorithm, **options),
            lambda m, n: [((m, n), {})],
        )
        for algorithm, options in [
            ("muon", {}),
            ("muon", {"nesterov": True, "adjust_lr": "rms_norm"}),
            ("normuon", {}),
            ("normuon", {"nesterov": True, "adjust_lr": None, "cautious_wd": True}),
            ("dion2", {}),
            ("dion2", {"fraction": 1.0, "adjust_lr": None, "selection_scope": "global", "capacity_factor": None}),
            ("adamw", {}),
            ("lion", {}),
        ]
    },
    "keller: convolutions": (
        "keller-muon",
        keller_muon,
        {**KELLER, "momentum": 0.9},
        lambda m, n: [((3, m, n), {}), ((m, n), {}), ((m, 2, 3, 3), {}), ((4, n, 1, 3), {})],
    ),
    **{
        f"microsoft: {algorithm}, {options}": (
            "microsoft-dion",
            microsoft,
            of_microsoft(algorithm, **options),
            lambda m, n, shape=shape: [(shape(m, n), {})],
        )
        for algorithm, options, shape in [
            ("muon", {"flatten": True}, lambda m, n: (m, n, 2)),
            ("muon", {"num_heads": 2}, lambda m, n: (2 * m, n)),
            ("muon", {"split_sizes": (5, 3)}, lambda m, n: (8, m + n)),
            ("normuon", {"num_heads": 3}, lambda m, n: (3 * m, n)),
            ("normuon", {"split_sizes": (5, 3), "adjust_lr": "rms_norm"}, lambda m, n: (8, min(m, n))),
            ("normuon", {"flatten": False, "nesterov": True}, lambda m, n: (2, 3, m, n)),
            ("dion2", {"flatten": False}, lambda m, n: (3, m, n)),
            ("nordion2", {"num_heads": 2}, lambda m, n: (2 * m, n)),
            ("nordion2", {"selection_scope": "global"}, lambda m, n: (3, m, n)),
        ]
    },
    "microsoft: nordion2": (
        "microsoft-dion",
        microsoft,
        of_microsoft("nordion2"),
        lambda m, n: [((m, n), {})],
    ),
}


def rank(m: int, n: int) -> int:
    return min(m, n, 2 * math.ceil(0.3 * min(m, n) / 2))


@pytest.mark.usefixtures("wide_moments")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_goes_on_as_the_formulas(shape: tuple[int, int], case: str) -> None:
    source, rule, options, parameters = CASES[case]
    shapes, states = zip(*((s, dict(state)) for s, state in parameters(*shape)), strict=True)
    group = {**options, "params": list(range(len(shapes)))}
    weights = [start(*s) for s in shapes]
    generator = torch.Generator().manual_seed(2)

    def step() -> list[Tensor]:
        gradients = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        if "step" in group:
            group["step"] += 1
        for i, G in enumerate(gradients):
            weights[i] = rule(weights[i], states[i], group, G)
        return gradients

    for _ in range(BEFORE):
        step()
    converted = convert_state({"state": dict(enumerate(states)), "param_groups": [group]}, source=source)
    # Moonlight's and Dion's parameters may come in another order: the same within each group.
    order = list(range(len(shapes)))
    if source == "moonlight-muon":
        order.sort(key=lambda i: not states[i]["use_muon"])
    if "sharded" in case:
        order.sort(key=lambda i: shapes[i][0] > shapes[i][1])
    params = [nn.Parameter(weights[i].clone()) for i in order]
    optimizer = resumed(converted, params, polar="svd")
    for _ in range(AFTER):
        gradients = step()
        give(params, [gradients[i] for i in order])
        optimizer.step()
    for i, param in zip(order, params, strict=True):
        assert_close(param.detach(), weights[i], 1e-10, f"{case}, parameter {i} of shape {shapes[i]}")


def test_options_that_are_tensors() -> None:
    group = {**of_microsoft("muon", lr=torch.tensor(0.5), weight_decay=torch.tensor(0.25)), "params": [0]}
    converted = convert_state({"state": {}, "param_groups": [group]}, source="microsoft-dion")["param_groups"][0]
    assert isinstance(converted["lr"], Tensor)
    assert (float(converted["lr"]), converted["weight_decay"]) == (0.5, 0.25)


def test_row_moments_become_float32() -> None:
    state = {"momentum": start(6, 4).bfloat16(), "variance_neuron": start(6, 1).square().bfloat16()}
    group = {**of_microsoft("normuon"), "params": [0]}
    converted = convert_state({"state": {0: state}, "param_groups": [group]}, source="microsoft-dion")["state"][0]
    assert converted["momentum"] is state["momentum"]
    assert torch.equal(converted["row_moment"], state["variance_neuron"].float())


def test_dion_by_the_side_of_Q() -> None:
    """A tall and a wide matrix whose Q belongs to the rows, as FSDP does it, become two groups."""
    group = {**of_microsoft("dion", rank_fraction=0.5), "params": [0, 1, 2], "param_names": ["tall", "wide", "new"]}
    state = {0: {"momentum": start(8, 4), "Q": start(8, 2)}, 1: {"momentum": start(4, 8), "Q": start(4, 2)}}
    conversion = convert_states([({"state": state, "param_groups": [group]}, "microsoft-dion")])
    long, short = conversion.state_dict["param_groups"]
    assert (long["param_names"], long["orthonormal_side"]) == (["wide", "new"], "long")
    assert (short["param_names"], short["orthonormal_side"]) == (["tall"], "short")
    assert list(conversion.state_dict["state"]) == [0, 2]
