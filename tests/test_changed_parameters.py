"""Parameters, gradients and modes that change between steps: an error with the name before anything changes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, MixedOptimizer
from tests.test_saved_state import assert_same

Params = dict[str, nn.Parameter]
NAMES = ("first", "w", "bias")


def made(rule: str = "dion", **options: Any) -> tuple[Params, MixedOptimizer]:
    """Return two matrices and a vector."""
    torch.manual_seed(0)
    params = {
        name: nn.Parameter(torch.randn(*shape, device="cpu"))
        for name, shape in zip(NAMES, [(4, 6), (6, 4), (5,)], strict=True)
    }
    groups: list[dict[str, Any]] = [
        {"params": [(name, params[name]) for name in NAMES[:2]], "name": "matrices"},
        {"params": [("bias", params["bias"])], "algorithm": "adamw"},
    ]
    return params, MixedOptimizer(groups, algorithm=rule, options=options)


def give_gradients(params: Params, seed: int) -> None:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for param in params.values():
        if not param.is_meta:
            param.grad = torch.randn(param.shape, generator=generator, device="cpu").to(param.dtype)


def snapshot(params: Params, optimizer: MixedOptimizer) -> list[Tensor]:
    state = [v.clone() for name in ("first", "bias") for v in optimizer.state.get(params[name], {}).values()]
    return [params["first"].detach().clone(), params["bias"].detach().clone(), *state]


def another_shape(params: Params, _: MixedOptimizer) -> None:
    params["w"].data = torch.zeros(3, 4)  # and its gradient has the old one


def another_shape_with_its_gradient(params: Params, _: MixedOptimizer) -> None:
    params["w"].grad = None
    params["w"].data = torch.zeros(3, 4)
    params["w"].grad = torch.ones(3, 4)


def fewer_columns(params: Params, _: MixedOptimizer) -> None:
    params["w"].data = params["w"].data[:, :2]


def sparse_gradient(params: Params, _: MixedOptimizer) -> None:
    params["w"].grad = torch.eye(6, 4).to_sparse()


def cast(params: Params, _: MixedOptimizer) -> None:
    params["w"].data = params["w"].data.bfloat16()
    params["w"].grad = torch.ones(6, 4, dtype=torch.bfloat16)


def cast_model(params: Params, _: MixedOptimizer) -> None:
    nn.ParameterDict({"w": params["w"]}).to(torch.float64)


def state_elsewhere(params: Params, optimizer: MixedOptimizer) -> None:
    optimizer.state[params["w"]]["momentum"] = torch.zeros(6, 4, device="meta")
    optimizer.param_groups[0]["maximize"] = True  # a new plan, which no schedule asks for


def taken_out(_: Params, optimizer: MixedOptimizer) -> None:
    group = optimizer.param_groups[0]
    del group["params"][1], group["param_names"][1]


def taken_out_but_for_its_name(_: Params, optimizer: MixedOptimizer) -> None:
    del optimizer.param_groups[0]["params"][1]


def group_taken_out(params: Params, optimizer: MixedOptimizer) -> None:
    optimizer.add_param_group({"params": [("more", nn.Parameter(torch.ones(2, 2)))]})
    group = optimizer.param_groups[0]
    group["params"], group["param_names"] = [params["first"]], ["first"]
    del optimizer.param_groups[2]


CHANGES: list[tuple[Callable[[Params, MixedOptimizer], None], str]] = [
    (another_shape, r"parameter 'w': .*gradient should be \(3, 4\), as its own, but is \(6, 4\)"),
    (
        another_shape_with_its_gradient,
        r"parameter 'w': has the shape \(3, 4\) now, but its state 'momentum' has \(6, 4\)",
    ),
    (fewer_columns, r"parameter 'w': .*gradient should be \(6, 2\), as its own, but is \(6, 4\)"),
    (sparse_gradient, "parameter 'w': its gradient should be dense"),
    (cast, "parameter 'w': has the dtype torch.bfloat16 now, but had torch.float32 in the last step"),
    (cast_model, "parameter 'w': has the dtype torch.float64 now, but had torch.float32 in the last step"),
    (state_elsewhere, "parameter 'w': lies on cpu now, but its state 'momentum' on meta"),
    (taken_out, "parameter 'w': has been taken out of its param group, but has state"),
    (taken_out_but_for_its_name, "'matrices': 'param_names' should have a name .*parameter 'w' has been taken out"),
    (group_taken_out, "parameter 'w': has been taken out of its param group, but has state"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
@pytest.mark.parametrize("rule", ["dion", "muon", "dion3"])
def test_a_change_is_an_error_before_anything_changes(
    rule: str, change: Callable[[Params, MixedOptimizer], None], message: str
) -> None:
    params, optimizer = made(rule)
    give_gradients(params, 0)
    optimizer.step()
    give_gradients(params, 1)
    before = snapshot(params, optimizer)
    change(params, optimizer)
    for _ in range(2):  # it stays one
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            optimizer.step()
        assert all(map(torch.equal, snapshot(params, optimizer), before))


@pytest.mark.parametrize(
    ("rule", "option", "value", "message"),
    [
        ("dion", "rank_fraction", 1.0, r"Dion: parameter 'w': Q should be \(rows, 4\) .*, but is \(rows, 1\)"),
        ("dion", "orthonormal_side", "long", r"Dion: parameter 'w': Q should be \(columns, 1\) .*, but is \(rows, 1\)"),
        (
            "dion",
            "state_dtype",
            torch.bfloat16,
            "Dion: parameter 'w': dtype of .* be torch.bfloat16 .*, but is the param",
        ),
        ("adamw", "amsgrad", True, "Dion: parameter 'w': max_exp_avg_sq should be in its state"),
        ("adamw", "amsgrad", False, "Dion: parameter 'w': max_exp_avg_sq should not be in its state"),
    ],
)
def test_options_that_ask_for_another_state(rule: str, option: str, value: object, message: str) -> None:
    """In the last group, so that others would have been updated before it."""
    torch.manual_seed(0)
    params = {name: nn.Parameter(torch.randn(6, 4)) for name in NAMES}
    groups = [{"params": [(name, params[name])], "algorithm": rule} for name in ("first", "bias", "w")]
    if option == "amsgrad":
        groups[2]["amsgrad"] = not value
    optimizer = Dion(groups)
    give_gradients(params, 0)
    optimizer.step()
    give_gradients(params, 1)
    before = snapshot(params, optimizer)
    was = optimizer.param_groups[2][option]
    optimizer.param_groups[2][option] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=message + ".*cannot change once there is state"):
            optimizer.step()
        assert all(map(torch.equal, snapshot(params, optimizer), before))
    optimizer.param_groups[2][option] = was
    optimizer.step()


def test_ways_out() -> None:
    """Cast and load; take the state out as well; change all before the first step."""
    params, optimizer = made("muon")
    give_gradients(params, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    for param in params.values():
        param.grad = None
        param.data = param.data.double()
    optimizer.load_state_dict(saved)
    give_gradients(params, 1)
    optimizer.step()
    taken_out(params, optimizer)
    del optimizer.state[params["w"]]
    w = params["w"].detach().clone()
    give_gradients(params, 2)
    optimizer.step()
    assert torch.equal(params["w"], w)
    params, optimizer = made("muon")
    for param in params.values():
        param.data = param.data.bfloat16()
    give_gradients(params, 0)
    optimizer.step()
    assert optimizer.state[params["w"]]["momentum"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("param", "error", "message"),
    [
        (lambda: nn.LazyLinear(3).weight, ValueError, "'w': should have a shape, but is of a lazy module"),
        (lambda: nn.LazyConv2d(3, 2).weight, ValueError, "'w': should have a shape, but is of a lazy module"),
        (
            lambda: nn.Parameter(torch.eye(3).to_sparse()),
            TypeError,
            "'w': should be a dense tensor, but is torch.sparse_coo",
        ),
    ],
)
@pytest.mark.parametrize("rule", ["adamw", "dion", "dion2", "dion3", "lion", "muon", "normuon"])
def test_parameters_that_cannot_be_updated(
    rule: str, param: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MixedOptimizer([("w", param())], algorithm=rule, options={})


@pytest.mark.parametrize("rule", ["dion", "muon", "lion"])
@pytest.mark.parametrize("meta", [*([name] for name in NAMES), NAMES], ids=",".join)
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_parameters_with_and_without_numbers(meta: Sequence[str], rule: str, nonfinite: str) -> None:
    params = {name: nn.Parameter(torch.ones(3, 3, device="meta" if name in meta else "cpu")) for name in NAMES}
    optimizer = MixedOptimizer(list(params.items()), algorithm=rule, options={}, nonfinite=nonfinite)
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()
    for param in params.values():
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=f"parameter '{meta[0]}': lies on meta, so that it has no numbers"):
        optimizer.step()
    assert not any(optimizer.state.values())


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        w = nn.Parameter(torch.ones(3, 3))
    optimizer = Dion([("w", w)])
    with torch.inference_mode():
        w.grad = torch.ones(3, 3)
    with pytest.raises(ValueError, match="parameter 'w': was made in inference mode"):
        optimizer.step()


def run(rule: str, options: dict[str, Any], around: Callable[[int], Any]) -> tuple[Params, MixedOptimizer]:
    params, optimizer = made(rule, **options)
    for seed in range(4):
        give_gradients(params, seed)
        with around(seed):
            optimizer.step()
            if seed == 1:
                optimizer.load_state_dict(optimizer.state_dict())
    return params, optimizer


MODES: dict[str, Callable[[int], Any]] = {
    "default device": lambda _: torch.device("meta"),
    "inference mode at first": lambda seed: torch.inference_mode(seed < 2),
    "inference mode later": lambda seed: torch.inference_mode(seed >= 2),
    "inference mode and default device": lambda seed: torch.device("meta") if seed % 2 else torch.inference_mode(),
    "gradients enabled": lambda _: torch.enable_grad(),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize(
    ("rule", "options"),
    [("dion", {}), ("muon", {}), ("normuon", {}), ("dion2", {"selection": "random"}), ("dion3", {}), ("lion", {})],
)
def test_modes_do_not_matter(rule: str, options: dict[str, Any], nonfinite: str, mode: str) -> None:
    options = {**options, "cautious_weight_decay": True}
    plain, through = (run(rule, options, around) for around in (lambda _: torch.no_grad(), MODES[mode]))
    for name in NAMES:
        assert torch.equal(plain[0][name], through[0][name]), name
        assert not any(v.is_inference() for v in through[1].state[through[0][name]].values())
    assert_same(plain[1].state_dict(), through[1].state_dict())
