"""What cannot be used is refused at once, by name, with what is allowed."""

from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon import Dion, MatrixView, explain, param_groups


def matrix(shape: tuple[int, ...] = (4, 3)) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


BAD_OPTIONS = [
    ({"lr": -0.1}, ValueError, "lr should be a number or a one-element tensor >= 0, but is -0.1"),
    ({"lr": torch.tensor(-0.1)}, ValueError, "lr should be"),
    ({"lr": torch.ones(2)}, TypeError, "lr should be"),
    ({"lr": "fast"}, TypeError, "lr should be .* but is 'fast'"),
    ({"lr": float("nan")}, ValueError, "lr should be"),
    ({"momentum": 1.0}, ValueError, r"momentum should be a number in \[0, 1\), but is 1.0"),
    ({"momentum": -0.1}, ValueError, "momentum"),
    ({"momentum": True}, TypeError, "momentum"),
    ({"rank_fraction": 0}, ValueError, r"rank_fraction should be a number in \(0, 1\], but is 0"),
    ({"rank_fraction": 1.5}, ValueError, "rank_fraction"),
    ({"rank_fraction": None}, TypeError, "rank_fraction"),
    ({"rank_multiple_of": 0}, ValueError, "rank_multiple_of should be an integer >= 1"),
    ({"rank_multiple_of": 2.0}, TypeError, "rank_multiple_of"),
    ({"power_iterations": 0}, ValueError, "power_iterations"),
    ({"right_factor": "qr"}, ValueError, "right_factor should be one of 'normalize', 'orthonormalize', but is 'qr'"),
    ({"orthonormal_side": "left"}, ValueError, "orthonormal_side should be one of 'short', 'long'"),
    ({"lr_scale": "spectral"}, ValueError, "'spectral_unclamped', 'original', 'match_rms_adamw', 'none'"),
    ({"betas": (0.9, 1.0)}, ValueError, "betas should be two numbers"),
    ({"betas": 0.9}, TypeError, "betas"),
    ({"eps": -1.0}, ValueError, "eps"),
    ({"weight_decay": -0.01}, ValueError, "weight_decay"),
    ({"state_dtype": torch.int8}, ValueError, "state_dtype should be None or one of torch.float64"),
    ({"state_dtype": "float32"}, TypeError, "state_dtype"),
    ({"maximize": 1}, TypeError, "maximize should be True or False"),
    ({"nonfinite": "ignore"}, ValueError, "nonfinite should be one of 'raise', 'skip', but is 'ignore'"),
    ({"seed": -1}, ValueError, "seed"),
    ({"beta": 0.9}, TypeError, "unexpected keyword argument 'beta'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=[str(o) for o, *_ in BAD_OPTIONS])
def test_options_of_the_constructor(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dion([matrix()], **options)


BAD_GROUPS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"params": [matrix()], "momentum": 2.0, "name": "mine"}, ValueError, "param group 'mine': momentum .* 2.0"),
    (
        {"params": [matrix()], "beta": (0.9, 0.9)},
        ValueError,
        "unknown option 'beta' for dion; it takes cautious_weight_decay, lr, lr_scale",
    ),
    ({"params": [matrix()], "algorithm": "adam"}, ValueError, "one of 'adamw', 'dion', .*'normuon', but is 'adam'"),
    ({"params": [matrix()], "algorithm": "adamw", "rank_fraction": 0.5}, ValueError, "unknown option 'rank_fraction'"),
    ({"params": []}, ValueError, "at least one parameter, but is empty"),
    ({"params": {matrix()}}, TypeError, "is a set"),
    ({"lr": 0.1}, TypeError, "dict with 'params'"),
    ({"params": [("a", matrix()), matrix()]}, ValueError, r"\(name, tensor\) pairs"),
    (
        {"params": [("bias", nn.Parameter(torch.zeros(3)))]},
        ValueError,
        r"parameter 'bias': dion updates matrices.*\(3,\)",
    ),
    ({"params": [("w", nn.Parameter(torch.zeros(2, 3, 4)))]}, ValueError, r"'w': .*\(2, 3, 4\)"),
    ({"params": [("w", nn.Parameter(torch.zeros(0, 3)))]}, ValueError, r"'w': .*\(0, 3\)"),
    ({"params": [("w", nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64)))]}, TypeError, "'w': dtype .*complex64"),
    ({"params": [("w", torch.zeros(2, 2, dtype=torch.int64))]}, TypeError, "'w': dtype should be .*int64"),
    ({"params": [("w", [1.0])]}, TypeError, "'w': should be a tensor, but is a list"),
    ({"params": [("w", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))], "algorithm": "lion"}, TypeError, "'w'"),
    ({"params": [torch.zeros(2, 2, requires_grad=True) * 2]}, ValueError, "non-leaf"),
]


@pytest.mark.parametrize(("group", "error", "message"), BAD_GROUPS, ids=[m for *_, m in BAD_GROUPS])
def test_groups(group: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dion([group])
    optimizer = Dion([("first", matrix())])
    with pytest.raises(error, match=message):
        optimizer.add_param_group(dict(group))
    assert len(optimizer.param_groups) == 1


def test_a_parameter_given_twice() -> None:
    w = matrix()
    for params in ([("a", w), ("b", w)], [{"params": [("a", w)]}, {"params": [("b", w)]}]):
        with pytest.raises(ValueError, match="parameter 'b': is given twice"):
            Dion(params)


def test_no_parameters_and_one_tensor() -> None:
    with pytest.raises(ValueError, match="empty"):
        Dion([])
    with pytest.raises(TypeError, match="iterable of tensors, but is one tensor"):
        Dion(matrix())  # type: ignore[arg-type]


def test_a_sparse_gradient() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = Dion([{"params": [("embed", embedding.weight)], "algorithm": "adamw"}])
    with pytest.raises(TypeError, match="parameter 'embed': its gradient should be dense.*sparse=False"):
        optimizer.step()
    assert not optimizer.state


def test_overrides_and_models() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=r"the pattern '\*.query' in overrides matches no parameter; there are 0.weight"
    ):
        param_groups(model, overrides={"*.query": {"lr": 0.1}})
    with pytest.raises(ValueError, match="unknown option 'rank'"):
        Dion.for_model(model, overrides={"0.weight": {"rank": 3}})
    with pytest.raises(ValueError, match="scalar_algorithm should be one of .* but is 'sgd'"):
        Dion.for_model(model, scalar_algorithm="sgd")
    with pytest.raises(ValueError, match="GELU has no parameters"):
        param_groups(nn.GELU())
    with pytest.raises(TypeError, match="should be one of Orthon's, but is a SGD"):
        explain(torch.optim.SGD(model.parameters()))  # type: ignore[arg-type]


def _state() -> tuple[Dion, dict[str, Any]]:
    w = matrix()
    optimizer = Dion([("w", w)])
    w.grad = torch.ones_like(w)
    optimizer.step()
    return optimizer, optimizer.state_dict()


def test_states_that_do_not_fit() -> None:
    optimizer, saved = _state()
    del saved["state"][0]["Q"]
    with pytest.raises(
        ValueError, match=r"parameter 'w': entries should be \['Q', 'momentum'\], but are \['momentum'\]"
    ):
        optimizer.load_state_dict(saved)
    optimizer, saved = _state()
    saved["state"][0]["momentum"] = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"shape of 'momentum' should be \(4, 3\), but is \(3, 4\)"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match="algorithm should be 'dion', but is None"):
        optimizer.load_state_dict(torch.optim.SGD([matrix()]).state_dict())


@pytest.mark.parametrize("change", [{"rank_fraction": 1.0}, {"orthonormal_side": "long"}])
def test_options_that_cannot_change_once_there_is_state(change: dict[str, Any]) -> None:
    optimizer, _ = _state()
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match="parameter 'w': Q should be .*cannot change once there is state"):
        optimizer.step()


def test_names_that_are_taken() -> None:
    with pytest.raises(ValueError, match="parameter 'w': another parameter has this name"):
        Dion([("w", matrix()), ("_orig_mod.w", matrix())])
