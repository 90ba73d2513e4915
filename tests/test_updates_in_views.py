"""Matrices in views are updated as parameters of their own, by every rule that takes matrices."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import Dion, MatrixView, explain
from tests.support.sampling import crossed

# For each rule a class of the family with some of its options.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "Dion": ("Dion", {"rank_fraction": 0.5}),
    "Dion, long side, orthonormalize": (
        "Dion",
        {"rank_fraction": 0.5, "orthonormal_side": "long", "right_factor": "orthonormalize"},
    ),
    "Muon": ("Muon", {}),
    "Muon, svd, cautious": ("Muon", {"polar": "svd", "cautious_weight_decay": True}),
    "NorMuon": ("NorMuon", {}),
    "Dion2": ("Dion2", {"fraction": 0.5}),
    "Dion2, random": ("Dion2", {"fraction": 0.5, "selection": "random", "lr_scale_by_fraction": True}),
    "Dion2, cautious": ("Dion2", {"fraction": 0.5, "cautious_weight_decay": True}),
    "Dion3": ("Dion3", {"fraction": 0.5}),
    "Dion3, local": ("Dion3", {"fraction": 0.5, "selection": "local"}),
}

Split = Callable[[Tensor], list[Tensor]]
CONV: dict[str, Any] = {"kind": "convolution"}
# For each view the shape of a parameter, and its matrices by torch's own operations, as they are numbered.
VIEWS: dict[str, tuple[dict[str, Any], tuple[int, ...], Split]] = {
    "plain": ({}, (9, 7), lambda w: [w]),
    "GPT-2's Conv1D": ({"transposed": True}, (9, 7), lambda w: [w.T]),
    "fused qkv": ({"blocks": (8, 4, 4)}, (16, 6), lambda w: [*w.split((8, 4, 4))]),
    "fused qkv of equal sizes": ({"blocks": 3}, (18, 5), lambda w: [*w.chunk(3)]),
    "fused qkv, Conv1D": (
        {"blocks": (8, 4, 4), "transposed": True},
        (6, 16),
        lambda w: [part.T for part in w.split((8, 4, 4), 1)],
    ),
    "fused qkv, equal, Conv1D": ({"blocks": 3, "transposed": True}, (5, 18), lambda w: [p.T for p in w.chunk(3, 1)]),
    "fused, of unequal ranks": ({"blocks": (2, 5, 4)}, (11, 6), lambda w: [*w.split((2, 5, 4))]),
    "blocks of unequal inputs": (
        {"blocks": (3, 7), "side": "columns"},
        (6, 10),
        lambda w: [*w.split((3, 7), 1)],
    ),
    "heads of rows": ({"blocks": 4}, (12, 10), lambda w: [*w.chunk(4)]),
    "heads of columns": ({"blocks": 4, "side": "columns"}, (10, 12), lambda w: [*w.chunk(4, 1)]),
    "heads of columns, Conv1D": (
        {"blocks": 4, "side": "columns", "transposed": True},
        (12, 10),
        lambda w: [part.T for part in w.chunk(4)],
    ),
    "experts": ({}, (3, 8, 5), lambda w: [*w]),
    "experts, two dims": ({}, (2, 3, 5, 8), lambda w: [*w.flatten(0, 1)]),
    "experts (E, in, out)": ({"transposed": True}, (3, 8, 5), lambda w: [e.T for e in w]),
    "experts' gate and up": ({"blocks": 2}, (3, 12, 5), lambda w: [part for e in w for part in e.chunk(2)]),
    "experts' gate and up (E, in, out)": (
        {"blocks": 2, "transposed": True},
        (3, 5, 12),
        lambda w: [part.T for e in w for part in e.chunk(2, 1)],
    ),
    "experts, unequal blocks": (
        {"blocks": (2, 5)},
        (3, 7, 6),
        lambda w: [part for e in w for part in e.split((2, 5))],
    ),
    "convolution": (CONV, (8, 3, 2, 3), lambda w: [w.flatten(1)]),
    "convolution over one dim": (CONV, (8, 5, 3), lambda w: [w.flatten(1)]),
    "convolution with groups": (CONV | {"blocks": 2}, (8, 3, 2, 2), lambda w: [*w.flatten(1).chunk(2)]),
    "transposed convolution": (CONV | {"transposed": True}, (4, 6, 2, 2), lambda w: [w.transpose(0, 1).flatten(1)]),
    "transposed convolution with groups": (
        CONV | {"transposed": True, "blocks": 2},
        (4, 6, 3),
        lambda w: [part.transpose(0, 1).flatten(1) for part in w.chunk(2)],
    ),
}


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def optimizer_for(rule: str, params: Any, **options: Any) -> Any:
    name, own = RULES[rule]
    return getattr(orthon, name)(params, **{"lr": 0.1, "weight_decay": 0.1, **own, **options})


def compared(
    rule: str, view: str, *, names: tuple[str, ...] = ("w",), memory_format: torch.memory_format | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Train parameters in a view, and their matrices as parameters, and return the matrices of both."""
    fields, shape, split = VIEWS[view]
    whole = {name: nn.Parameter(random(shape, i)) for i, name in enumerate(names)}
    apart: dict[str, list[nn.Parameter]] = {}
    for name, p in whole.items():
        apart[name] = [nn.Parameter(part.detach().clone(memory_format=torch.contiguous_format)) for part in split(p)]
        if memory_format is not None:
            p.data = p.data.to(memory_format=memory_format)
    named = [
        (name if len(parts) == 1 else f"{name}[{i}]", part)
        for name, parts in apart.items()
        for i, part in enumerate(parts)
    ]
    optimizers = (
        optimizer_for(rule, [{"params": list(whole.items()), "view": MatrixView(**fields)}]),
        optimizer_for(rule, named),
    )
    for step in range(4):
        for i, (name, p) in enumerate(whole.items()):
            G = random(shape, 100 + 10 * step + i)
            p.grad = G if memory_format is None else G.to(memory_format=memory_format)
            for part, piece in zip(apart[name], split(G), strict=True):
                part.grad = piece.clone(memory_format=torch.contiguous_format)
        for optimizer in optimizers:
            optimizer.step()
    for p in whole.values():
        if memory_format is not None:
            assert p.is_contiguous(memory_format=memory_format)
    ours = [part.detach() for p in whole.values() for part in split(p)]
    return ours, [part.detach() for _, part in named]


@pytest.mark.parametrize(("rule", "view"), crossed(RULES, VIEWS, every=4))
def test_a_view_is_its_matrices(rule: str, view: str) -> None:
    for names in (("w",), ("w", "v")):
        for i, (ours, theirs) in enumerate(zip(*compared(rule, view, names=names), strict=True)):
            error = (ours - theirs).abs().max()
            assert error <= 1e-12, f"{rule}, {view}, matrix {i} of {names}: {error:.1e}"


@pytest.mark.parametrize("view", ["plain", "experts", "fused qkv", "fused qkv of equal sizes", "heads of rows"])
@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_rows_are_their_matrices_to_the_bit(rule: str, view: str) -> None:
    for i, (ours, theirs) in enumerate(zip(*compared(rule, view), strict=True)):
        assert torch.equal(ours, theirs), i


@pytest.mark.parametrize(
    ("rule", "view"),
    crossed(RULES, ["convolution", "convolution with groups", "transposed convolution"], every=3),
)
def test_channels_last(rule: str, view: str) -> None:
    for names in (("w",), ("w", "v")):
        for ours, theirs in zip(*compared(rule, view, names=names, memory_format=torch.channels_last), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def train(rule: str, optimizer: Any, params: dict[str, nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        for i, p in enumerate(params.values()):
            p.grad = random(p.shape, 100 * seed + i, p.dtype)
        optimizer.step()


def in_a_view(rule: str, view: str, dtype: torch.dtype, **options: Any) -> tuple[dict[str, nn.Parameter], Any]:
    fields, shape, _ = VIEWS[view]
    params = {name: nn.Parameter(random(shape, i, dtype)) for i, name in enumerate(("w", "v"))}
    params["plain"] = nn.Parameter(random((6, 4), 9, dtype))
    groups = [
        {"params": [(name, params[name]) for name in ("w", "v")], "view": fields},
        {"params": [("plain", params["plain"])]},
    ]
    return params, optimizer_for(rule, groups, **options)


@pytest.mark.parametrize(("rule", "view"), crossed(RULES, VIEWS, every=4))
def test_a_loaded_state_continues_to_the_bit(rule: str, view: str) -> None:
    options: dict[str, Any] = {"state_dtype": torch.bfloat16} if view.startswith("exp") else {}
    params, optimizer = in_a_view(rule, view, torch.float32, **options)
    train(rule, optimizer, params, range(3))
    file = io.BytesIO()
    torch.save({"weights": params, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert isinstance(saved["optimizer"]["param_groups"][0]["view"], dict)

    others, loaded = in_a_view(rule, view, torch.float32, **options)
    if view == "fused qkv":  # a view that is given otherwise is replaced by the saved one, as other options are
        loaded.param_groups[0]["lr"] = 7.0
    loaded.load_state_dict(saved["optimizer"])
    assert loaded.param_groups[0]["view"] == MatrixView(**VIEWS[view][0])
    for name, p in others.items():
        p.data.copy_(saved["weights"][name].data)
        assert loaded.state[p].keys() == optimizer.state[params[name]].keys()
        for key, value in optimizer.state[params[name]].items():
            assert torch.equal(loaded.state[p][key], value), (name, key)
            assert loaded.state[p][key].dtype == value.dtype, (name, key)
    train(rule, optimizer, params, range(3, 6))
    train(rule, loaded, others, range(3, 6))
    for name, p in params.items():
        assert torch.equal(p, others[name]), name
        for key, value in optimizer.state[p].items():
            assert torch.equal(loaded.state[others[name]][key], value), (name, key)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("view", ["fused qkv", "experts' gate and up (E, in, out)", "convolution with groups"])
@pytest.mark.parametrize("rule", RULES)
def test_copies_continue_alike(rule: str, view: str, how: str) -> None:
    params, optimizer = in_a_view(rule, view, torch.float32, nonfinite="skip")
    train(rule, optimizer, params, range(2))
    pair = params, optimizer
    others, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(rule, optimizer, params, range(2, 4))
    train(rule, copied, others, range(2, 4))
    for name, p in params.items():
        assert torch.equal(p, others[name]), name


def test_a_view_that_is_given_as_a_mapping() -> None:
    results = []
    for view in (MatrixView(blocks=(8, 4, 4)), {"blocks": (8, 4, 4)}, {"blocks": [8, 4, 4], "kind": "linear"}):
        param = nn.Parameter(random((16, 6), 0))
        optimizer = orthon.Muon([("w", param)], view=view)
        assert optimizer.param_groups[0]["view"] == MatrixView(blocks=(8, 4, 4))
        param.grad = random((16, 6), 1)
        optimizer.step()
        results.append(param.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("view", [name for name, (fields, *_) in VIEWS.items() if "blocks" in fields or "exp" in name])
@pytest.mark.parametrize("adjust_lr_fn", ["spectral_unclamped", "original", "match_rms_adamw", "none"])
def test_lr_factors_are_those_of_the_matrices(adjust_lr_fn: str, view: str) -> None:
    """A polar factor of full rank has as many singular values of one as the shorter side."""
    fields, shape, split = VIEWS[view]
    param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = orthon.Muon(
        [("w", param)], lr=1.0, weight_decay=0.0, adjust_lr_fn=adjust_lr_fn, polar="svd", view=MatrixView(**fields)
    )
    param.grad = random(shape, 0)
    optimizer.step()
    for part in split(param.detach()):
        m, n = part.shape
        factor = {
            "spectral_unclamped": math.sqrt(m / n),
            "original": math.sqrt(max(1, m / n)),
            "match_rms_adamw": 0.2 * math.sqrt(max(m, n)),
            "none": 1.0,
        }[adjust_lr_fn]
        values = torch.linalg.svdvals(part)
        torch.testing.assert_close(values, torch.full_like(values, factor), rtol=1e-10, atol=0)


def test_explanations_tell_matrices_rank_and_factor() -> None:
    def view(fields: dict[str, Any], name: str, shape: tuple[int, ...], **more: Any) -> dict[str, Any]:
        return {"params": [(name, nn.Parameter(torch.zeros(shape)))], "view": fields, **more}

    groups = [
        {"params": [("plain", nn.Parameter(torch.zeros(8, 4)))]},
        view({"blocks": (8, 4, 4)}, "qkv", (16, 6)),
        view({"blocks": 4, "side": "columns"}, "heads", (8, 64)),
        view({"blocks": 2, "transposed": True}, "experts", (5, 16, 48), algorithm="muon", adjust_lr_fn="original"),
        view({"kind": "convolution"}, "conv", (8, 3, 2, 2), algorithm="dion2", adjust_lr_fn="match_rms_adamw"),
        {"params": [("bias", nn.Parameter(torch.zeros(8)))], "algorithm": "adamw"},
    ]
    explanation = explain(Dion(groups, rank_fraction=0.5))
    found = [
        (row.parameter, row.shape, row.matrices, row.rule, row.update_rank, pytest.approx(row.lr_factor))
        for row in explanation.rows
    ]
    assert found == [
        ("plain", (8, 4), "", "dion", 2, math.sqrt(2)),
        ("qkv", (16, 6), "1 of 8×6, 2 of 4×6", "dion", 3, math.sqrt(8 / 6)),
        ("heads", (8, 64), "4 of 8×16", "dion", 4, math.sqrt(8 / 16)),
        ("experts", (5, 16, 48), "10 of 24×16", "muon", None, math.sqrt(24 / 16)),
        ("conv", (8, 3, 2, 2), "1 of 8×12", "dion2", None, 0.2 * math.sqrt(12)),
        ("bias", (8,), "", "adamw", None, 1.0),
    ]
    text = str(explanation)
    for part in ("1 of 8×6, 2 of 4×6", "4 of 8×16", "10 of 24×16", "1 of 8×12"):
        assert part in text


@pytest.mark.parametrize(("rule", "view"), crossed(RULES, VIEWS, every=4))
def test_explained_bytes_are_those_of_the_state(rule: str, view: str) -> None:
    params, optimizer = in_a_view(rule, view, torch.float32)
    explained = {row.parameter: row.state_bytes for row in explain(optimizer).rows}
    train(rule, optimizer, params, range(1))
    for name, p in params.items():
        assert explained[name] == sum(value.nbytes for value in optimizer.state[p].values()), name


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.startswith("Dion,") or rule == "NorMuon"])
def test_states_of_blocks(rule: str) -> None:
    """Equal blocks have one tensor; unequal ones have their own where it lies along the other side, or by its width."""
    shapes = {}
    for view in ("heads of columns", "blocks of unequal inputs", "fused, of unequal ranks", "experts' gate and up"):
        params, optimizer = in_a_view(rule, view, torch.float32)
        train(rule, optimizer, params, range(1))
        state = optimizer.state[params["w"]]
        shapes[view] = {key: tuple(value.shape) for key, value in state.items() if key != "momentum"}
    if rule == "NorMuon":
        assert shapes == {
            "heads of columns": {"row_moment": (10, 4, 1)},
            "blocks of unequal inputs": {"row_moment.0": (6, 1), "row_moment.1": (6, 1)},
            "fused, of unequal ranks": {"row_moment": (11, 1)},
            "experts' gate and up": {"row_moment": (3, 12, 1)},
        }
    else:  # P belongs to the long side, Q to the short one
        assert shapes == {
            "heads of columns": {"Q": (12, 2)},
            "blocks of unequal inputs": {"Q": (10, 2), "Q.1": (6, 3)},
            "fused, of unequal ranks": {"Q.0": (11, 1), "Q.1": (11, 3), "Q.2": (11, 2)},
            "experts' gate and up": {"Q": (3, 5, 2, 3)},
        }
