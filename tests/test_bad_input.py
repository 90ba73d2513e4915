"""What cannot be used is refused at once, by name, with what is allowed."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon import Dion, MatrixView, MixedOptimizer, explain, param_groups


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
    (
        {"precision": "half"},
        ValueError,
        "None or one of 'float32', 'tf32', 'bf16x3', but is 'half'",
    ),
    ({"precision": 32}, TypeError, "precision should be None or one of"),
    ({"product_dtype": torch.float16}, ValueError, "product_dtype should be None or one of torch.float64"),
    ({"product_dtype": "float16"}, ValueError, "product_dtype should be None or one of torch.float64, .*'float16'"),
    ({"product_dtype": 16}, TypeError, "product_dtype should be None or one of torch.float64"),
    (
        {"right_factor": "qr"},
        ValueError,
        "right_factor should be one of 'orthonormalize', 'normalize', 'polar', but is 'qr'",
    ),
    ({"orthonormal_side": "left"}, ValueError, "orthonormal_side should be one of 'short', 'long'"),
    ({"adjust_lr_fn": "spectral"}, ValueError, "'spectral_unclamped', 'original', 'match_rms_adamw', 'none'"),
    ({"betas": (0.9, 1.0)}, ValueError, "betas should be two numbers"),
    ({"betas": 0.9}, TypeError, "betas"),
    ({"eps": -1.0}, ValueError, "eps"),
    ({"weight_decay": -0.01}, ValueError, "weight_decay"),
    ({"state_dtype": torch.int8}, ValueError, "state_dtype should be None or one of torch.float64"),
    ({"state_dtype": "float23"}, ValueError, "state_dtype should be None or one of torch.float64, .*'float23'"),
    ({"state_dtype": "int8"}, ValueError, "state_dtype"),
    ({"state_dtype": ["float32"]}, TypeError, "state_dtype"),
    ({"maximize": 1}, TypeError, "maximize should be True or False"),
    ({"nonfinite": "ignore"}, ValueError, "nonfinite should be one of 'raise', 'skip', but is 'ignore'"),
    ({"seed": -1}, ValueError, "seed"),
    ({"beta": 0.9}, TypeError, "unexpected keyword argument 'beta'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=[str(o) for o, *_ in BAD_OPTIONS])
def test_options_of_the_constructor(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dion([matrix()], **options)


FRACTION = r"fraction should be a number in \(0, 1\], but is"
POLAR = "polar should be one of 'polar_express', 'newton_schulz', 'svd', but is 'qr'"
BAD_OPTIONS_OF: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *[(rule, {"polar": "qr"}, ValueError, POLAR) for rule in ("Muon", "NorMuon", "Dion2", "Dion3")],
    ("Muon", {"polar": None}, TypeError, "polar should be one of"),
    ("Muon", {"polar_steps": 0}, ValueError, "polar_steps should be an integer >= 1, but is 0"),
    ("Dion2", {"polar_steps": 2.5}, TypeError, "polar_steps should be an integer >= 1, but is 2.5"),
    ("Muon", {"polar_route": "gather"}, ValueError, "polar_route should be one of 'auto', 'owners', 'shards', but is"),
    ("Muon", {"momentum": 1.0}, ValueError, r"momentum should be a number in \[0, 1\), but is 1.0"),
    ("Muon", {"nesterov": 1}, TypeError, "nesterov should be True or False, but is 1"),
    ("NorMuon", {"ema": "yes"}, TypeError, "ema should be True or False, but is 'yes'"),
    ("NorMuon", {"beta2": 1.0}, ValueError, r"beta2 should be a number in \[0, 1\), but is 1.0"),
    ("Dion3", {"beta2": -0.5}, ValueError, r"beta2 should be a number in \[0, 1\), but is -0.5"),
    ("Dion3", {"beta2": (0.9, 0.95)}, TypeError, "beta2 should be a number"),
    ("NorMuon", {"eps": 0.0}, ValueError, "eps should be a number > 0, but is 0.0"),
    ("Dion2", {"fraction": 0}, ValueError, f"{FRACTION} 0"),
    ("Dion2", {"fraction": 1.5}, ValueError, f"{FRACTION} 1.5"),
    ("Dion3", {"fraction": -1}, ValueError, f"{FRACTION} -1"),
    ("Dion3", {"fraction": float("nan")}, ValueError, f"{FRACTION} nan"),
    ("Dion2", {"fraction": "a"}, TypeError, f"{FRACTION} 'a'"),
    ("Dion2", {"selection": "top"}, ValueError, "selection should be one of 'global', 'local', 'random', but is 'top'"),
    ("Dion2", {"lr_scale_by_fraction": 1}, TypeError, "lr_scale_by_fraction should be True or False, but is 1"),
    ("Dion2", {"cautious_weight_decay": 1}, TypeError, "cautious_weight_decay should be True or False, but is 1"),
    ("Muon", {"view": "heads"}, TypeError, "view should be a MatrixView, .* but is 'heads'"),
    ("Muon", {"view": {"head": 4}}, ValueError, "view: MatrixView: takes blocks, kind, side, transposed, not 'head'"),
    ("Muon", {"view": {"blocks": 0}}, ValueError, "view: MatrixView: blocks should be an integer >= 1"),
    ("Muon", {"view": {"blocks": 1.5}}, TypeError, "view: MatrixView: blocks should be an integer >= 1"),
    ("Muon", {"view": {"blocks": ()}}, ValueError, "view: MatrixView: blocks should be an integer >= 1"),
    ("Muon", {"view": {"kind": 3}}, TypeError, "view: MatrixView: kind should be one of 'linear', 'convolution'"),
    ("Muon", {"view": {"side": "top"}}, ValueError, "view: MatrixView: side should be one of 'rows', 'columns'"),
    ("Muon", {"view": {"transposed": 1}}, TypeError, "view: MatrixView: transposed should be True or False, but is 1"),
    ("Muon", {"view": {1: 2, "a": 3}}, ValueError, "view: MatrixView: takes blocks, .*, not 'a', 1"),
]


@pytest.mark.parametrize(
    ("rule", "options", "error", "message"), BAD_OPTIONS_OF, ids=[f"{r}, {o}" for r, o, *_ in BAD_OPTIONS_OF]
)
def test_options_of_the_family(rule: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    make = getattr(orthon, rule)
    with pytest.raises(error, match=f"{rule}: (param group 0: )?{message}"):
        make([matrix()], **options)
    optimizer = make([matrix()])
    with pytest.raises(error, match=f"{rule}: param group 1: {message}"):
        optimizer.add_param_group({"params": [matrix()], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("rule", "option", "some"),
    [
        ("Dion", "fraction", "power_iterations, precision, product_dtype, rank_fraction, rank_multiple_of"),
        ("Muon", "ns_steps", "nesterov, nonfinite, others, polar, polar_dtype, polar_route, polar_steps"),
        ("NorMuon", "betas2", "beta2, betas"),
        ("Dion2", "rank_fraction", "adjust_lr_fn, betas, .*fraction, fused, lr, lr_scale_by_fraction"),
        ("Dion2", "nesterov", "selection"),
        ("Dion2", "polar_route", "polar, polar_dtype, polar_steps"),
        ("Dion3", "mu", "beta2, betas, capturable, cautious_weight_decay, eps, foreach, fraction"),
    ],
)
def test_unknown_keywords(rule: str, option: str, some: str) -> None:
    with pytest.raises(TypeError, match=f"{rule}: unexpected keyword argument '{option}'.*; it takes .*{some}"):
        getattr(orthon, rule)([matrix()], **{option: 1})


BAD_VIEWS = [
    (None, (6, 4, 3), r"updates matrices, .* but is \(6, 4, 3\); tell by view=MatrixView"),
    (None, (6, 4, 3, 3), r"updates matrices, .* but is \(6, 4, 3, 3\); tell by view=MatrixView"),
    (None, (6,), r"updates matrices, .* but is \(6,\)"),
    (MatrixView(blocks=3), (8, 4), r"its view MatrixView\(blocks=3\) should have a number of blocks that divides 8"),
    (MatrixView(blocks=3, side="columns"), (6, 4), "a number of blocks that divides 4"),
    (MatrixView(blocks=(4, 2)), (8, 4), "has blocks of 6 in all, but should have 8"),
    (MatrixView(), (6,), r"needs a shape of 2 dims or more, none of them 0, but it is \(6,\)"),
    (MatrixView(), (), "needs a shape of 2 dims"),
    (MatrixView(), (0, 3), "none of them 0"),
    (MatrixView(kind="convolution"), (6, 4), "needs a shape of 3 dims"),
    (MatrixView(kind="convolution", blocks=6), (6, 1, 3, 3), "depthwise .* give it to another algorithm"),
]


@pytest.mark.parametrize(("view", "shape", "message"), BAD_VIEWS, ids=[f"{v}, {s}" for v, s, _ in BAD_VIEWS])
@pytest.mark.parametrize("rule", ["Dion", "Muon", "NorMuon", "Dion2", "Dion3"])
def test_views_that_do_not_fit(rule: str, view: MatrixView | None, shape: tuple[int, ...], message: str) -> None:
    params = [("a", matrix()), ("layer.w", matrix(shape))]
    with pytest.raises(ValueError, match=f"{rule}: parameter 'layer.w': .*{message}"):
        getattr(orthon, rule)([{"params": params[:1]}, {"params": params[1:], "view": view}])
    optimizer = getattr(orthon, rule)(params[:1])
    with pytest.raises(ValueError, match=f"{rule}: parameter 'layer.w': .*{message}"):
        optimizer.add_param_group({"params": params[1:], "view": None if view is None else view.as_dict()})
    assert len(optimizer.param_groups) == 1


def test_a_state_of_another_view() -> None:
    w = matrix((8, 4))
    optimizer = orthon.NorMuon([("w", w)], view=MatrixView(side="columns", blocks=2))
    w.grad = torch.ones_like(w)
    optimizer.step()
    saved = optimizer.state_dict()
    for blocks in ((3, 1), 3):
        saved["param_groups"][0]["view"] = {"side": "columns", "blocks": blocks}
        message = f"view should be .*blocks={re.escape(str(blocks))}, .* but is .*blocks=2,"
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)
    saved["param_groups"][0]["view"] = {"side": "diagonals"}
    with pytest.raises(ValueError, match="saved view: .*'diagonals'"):
        optimizer.load_state_dict(saved)


BAD_GROUPS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"params": [matrix()], "momentum": 2.0, "name": "mine"}, ValueError, "param group 'mine': momentum .* 2.0"),
    (
        {"params": [matrix()], "beta": (0.9, 0.9)},
        ValueError,
        r"unknown option 'beta' for dion \(did you mean 'beta2' of dion3, normuon or 'betas' of adamw, lion\?\); "
        "it takes adjust_lr_fn, capturable, cautious_weight_decay, lr",
    ),
    ({"params": [matrix()], "algorithm": "adam"}, ValueError, "one of 'adamw', 'dion', .*'normuon', but is 'adam'"),
    (
        {"params": [matrix()], "algorithm": "adamw", "rank_fraction": 0.5},
        ValueError,
        r"unknown option 'rank_fraction' for adamw \(an option of dion\)",
    ),
    ({"params": {matrix()}}, TypeError, "is a set"),
    ({"params": None}, TypeError, "param group .: params should be an iterable of tensors, but is None"),
    (
        {"params": [("a", matrix(), 1)]},
        ValueError,
        r"params should be \(name, tensor\) pairs, but one of them is no pair",
    ),
    ({"params": [(1, matrix())]}, TypeError, r"param_names should be a list of strings, but is \[1\]"),
    ({"params": [matrix()], "param_names": 5}, TypeError, "param_names should be a list of strings, but is 5"),
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
    for params in (None, 5, nn.Linear(2, 2)):
        with pytest.raises(
            TypeError, match=re.escape(f"Dion: params should be an iterable of tensors, but is {params}")
        ):
            Dion(params)  # type: ignore[arg-type]


def test_what_is_no_view_and_no_options() -> None:
    with pytest.raises(TypeError, match="MatrixView: should be a MatrixView or a mapping of its fields, but is 3"):
        MatrixView.of(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MixedOptimizer: options should be a dict of options by name, but is None"):
        MixedOptimizer([matrix()], algorithm="dion", options=None)  # type: ignore[arg-type]


def test_a_sparse_gradient() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = Dion([{"params": [("embed", embedding.weight)], "algorithm": "adamw"}])
    with pytest.raises(TypeError, match="parameter 'embed': its gradient should be dense.*sparse=False"):
        optimizer.step()
    assert not optimizer.state


def test_overrides_and_models() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.warns(
        UserWarning, match=r"the pattern '\*.query' in overrides matches no parameter; there are 0.weight"
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
    with pytest.raises(ValueError, match="algorithm should be 'dion', but was saved as None"):
        optimizer.load_state_dict(torch.optim.SGD([matrix()]).state_dict())


@pytest.mark.parametrize("change", [{"rank_fraction": 1.0}, {"orthonormal_side": "long"}])
def test_options_that_cannot_change_once_there_is_state(change: dict[str, Any]) -> None:
    optimizer, _ = _state()
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match="parameter 'w': Q should be .*cannot change once there is state"):
        optimizer.step()


def test_names_that_are_taken() -> None:
    for names in (("w", "w"), ("_orig_mod.w", "_orig_mod.w"), ("module.w", "module.w")):
        with pytest.raises(ValueError, match="parameter '.*w': another parameter has this name"):
            Dion([(name, matrix()) for name in names])
        with pytest.raises(ValueError, match="parameter '.*w': another parameter has this name"):
            Dion([{"params": [(name, matrix())]} for name in names])
    # Names that would become one without what wrappers add stay as they are.
    for names in (("w", "_orig_mod.w"), ("w", "module.w"), ("_orig_mod.w", "_orig_mod._orig_mod.w")):
        optimizer = Dion([(name, matrix()) for name in names])
        assert [row.parameter for row in explain(optimizer).rows] == list(names)
