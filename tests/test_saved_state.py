"""What a saved state must be to be loaded, and what becomes of its options; in one process."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orthon import Dion, MatrixView, MixedOptimizer
from orthon.algorithms import RULES
from tests.support.checkpointing import ALONE, GROUPS, run_of, train

State = dict[str, Any]


def trained(**changes: Any) -> MixedOptimizer:
    """Return an optimizer of all rules with state; with other options where asked, by 'group.option'."""
    model, optimizer = run_of(ALONE, 1)
    for key, value in changes.items():
        optimizer.param_groups[list(GROUPS).index(key.split(".")[0])][key.split(".")[1]] = value
    train(ALONE, model, optimizer, range(2))
    return optimizer


def content(optimizer: torch.optim.Optimizer) -> State:
    return copy.deepcopy(optimizer.state_dict())


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def test_a_state_goes_through_a_file() -> None:
    """Weights and state, the next steps included, are the same to the bit."""
    model, optimizer = run_of(ALONE, 1)
    train(ALONE, model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(ALONE, model, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, loaded = run_of(ALONE, None)
    other.load_state_dict(saved["model"])
    loaded.load_state_dict(saved["optimizer"])
    train(ALONE, other, loaded, range(3, 6))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert_same(loaded.state_dict(), optimizer.state_dict())


# Options


@pytest.mark.parametrize(
    ("group", "option", "value"),
    [
        ("dion wide", "orthonormal_side", "long"),
        ("dion blocks", "view", MatrixView(blocks=4)),
        ("muon", "ema", False),
        ("adamw", "amsgrad", False),
    ],
)
def test_options_on_which_the_meaning_of_a_state_depends(group: str, option: str, value: object) -> None:
    saved = content(trained())
    optimizer = trained()
    was = optimizer.param_groups[list(GROUPS).index(group)][option]
    optimizer.param_groups[list(GROUPS).index(group)][option] = value
    before = content(optimizer)
    message = f"param group {list(GROUPS).index(group)}: {option} should be {was!r}, .* but is {value!r}"
    with pytest.raises(ValueError, match=message.translate(str.maketrans({c: "\\" + c for c in "()"}))):
        optimizer.load_state_dict(saved)
    assert_same(content(optimizer), before)


def test_a_view_that_means_the_same() -> None:
    w = nn.Parameter(torch.ones(4, 3))
    optimizer = Dion([("w", w)], view=MatrixView())
    optimizer.load_state_dict(Dion([("w", w)]).state_dict())
    assert optimizer.param_groups[0]["view"] == MatrixView()


@pytest.mark.parametrize(
    ("option", "saved", "own", "expected"),
    [
        ("lr", 0.1, 0.2, 0.1),
        ("momentum", 0.9, 0.8, 0.9),
        ("state_dtype", torch.float32, None, torch.float32),
        ("right_factor", "orthonormalize", "normalize", "orthonormalize"),
        ("rank_fraction", 0.5, 0.25, 0.25),
        ("rank_multiple_of", 2, 1, 1),
    ],
)
def test_what_becomes_of_options(option: str, saved: object, own: object, expected: object) -> None:
    def optimizer(value: object) -> Dion:
        w = nn.Parameter(torch.ones(4, 8))
        w.grad = torch.randn(4, 8)
        made = Dion([("w", w)], **{option: value})
        made.step()
        return made

    there = optimizer(own)
    there.load_state_dict(optimizer(saved).state_dict())
    assert there.param_groups[0][option] == expected
    there.step()


def test_options_of_other_versions() -> None:
    """What was not known then keeps its value; an old name is read; schedulers and others keep what they need."""
    w = nn.Parameter(torch.ones(4, 3))
    saved = Dion([("w", w)], lr=0.3).state_dict()
    del saved["param_groups"][0]["power_iterations"]
    saved["param_groups"][0].update({"max_lr": 7.0, "surprise": 1, "lr_scale": "none"})
    del saved["param_groups"][0]["adjust_lr_fn"]
    optimizer = Dion([("w", w)], power_iterations=2)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["power_iterations"], group["max_lr"], group["surprise"]) == (0.3, 2, 7.0, 1)
    assert group["adjust_lr_fn"] == "none"
    assert "lr_scale" not in group
    before = content(optimizer)
    for key, meant in (("rank_frac", "did you mean 'rank_fraction'"), ("fraction", "an option of dion2, dion3")):
        wrong = {**saved, "param_groups": [{**saved["param_groups"][0], key: 0.5}]}
        with pytest.raises(ValueError, match=rf"param group 0: saved: unknown option '{key}' for dion \({meant}"):
            optimizer.load_state_dict(wrong)
        assert_same(content(optimizer), before)


def test_a_scheduler_goes_on() -> None:
    def make() -> tuple[nn.Parameter, Dion, torch.optim.lr_scheduler.OneCycleLR]:
        w = nn.Parameter(torch.ones(4, 3))
        optimizer = Dion([("w", w)])
        return w, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8)

    def go(w: nn.Parameter, optimizer: Dion, scheduler: torch.optim.lr_scheduler.OneCycleLR) -> None:
        for _ in range(3):
            w.grad = torch.ones(4, 3)
            optimizer.step()
            scheduler.step()

    whole, parts = make(), make()
    go(*whole)
    parts[0].data.copy_(whole[0].data)
    parts[1].load_state_dict(whole[1].state_dict())
    parts[2].load_state_dict(whole[2].state_dict())
    go(*whole)
    go(*parts)
    assert torch.equal(whole[0], parts[0])
    assert parts[1].param_groups[0]["momentum"] == whole[1].param_groups[0]["momentum"]


# Ranks


def dion_of_rank(rank_fraction: float, **options: Any) -> tuple[nn.Parameter, Dion]:
    w = nn.Parameter(torch.zeros(16, 24, dtype=torch.float64))
    return w, Dion([("w", w)], rank_fraction=rank_fraction, lr=0.1, weight_decay=0.0, **options)


def step(w: nn.Parameter, optimizer: Dion, seed: int) -> None:
    w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
    optimizer.step()


@pytest.mark.parametrize("view", [None, MatrixView(blocks=2), MatrixView(transposed=True)])
@pytest.mark.parametrize(("before", "after"), [(0.5, 0.25), (0.25, 0.5), (0.25, 1.0), (1.0, 0.01)])
def test_another_rank(before: float, after: float, view: MatrixView | None) -> None:
    """Columns are cut or added, the momentum remains, and the added columns are those of a new state."""
    w, optimizer = dion_of_rank(before, view=view)
    for seed in range(3):
        step(w, optimizer, seed)
    other, loaded = dion_of_rank(after, view=view)
    new, fresh = dion_of_rank(after, view=view)
    new.grad = torch.zeros_like(new)
    fresh.step()
    loaded.load_state_dict(optimizer.state_dict())
    old, Q = optimizer.state[w]["Q"], loaded.state[other]["Q"]
    columns = min(old.shape[-1], Q.shape[-1])
    assert Q.shape == fresh.state[new]["Q"].shape
    assert torch.equal(Q[..., :columns], old[..., :columns])
    assert torch.equal(Q[..., columns:], fresh.state[new]["Q"][..., columns:])
    assert torch.equal(loaded.state[other]["momentum"], optimizer.state[w]["momentum"])
    step(other, loaded, 3)
    assert other.isfinite().all()


def test_the_first_columns_are_those_of_the_largest_singular_values() -> None:
    """A cut factor finds the best update of its rank at once."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 16, generator=generator, dtype=torch.float64))[0] for n in (16, 24))
    w, optimizer = dion_of_rank(1.0)
    for _ in range(20):
        w.grad = U @ torch.diag(0.5 ** torch.arange(16, dtype=torch.float64)) @ V.T
        optimizer.step()
    other, loaded = dion_of_rank(0.25)
    loaded.load_state_dict(optimizer.state_dict())
    Q = loaded.state[other]["Q"]
    assert Q.shape == (24, 4)
    assert torch.linalg.svdvals(V[:, :4].T @ Q).min() > 0.99


def test_blocks_that_one_rank_keeps_together_and_another_apart() -> None:
    options = {"view": MatrixView(blocks=(12, 4)), "orthonormal_side": "long"}
    w, optimizer = dion_of_rank(0.01, **options)
    step(w, optimizer, 0)
    _, other = dion_of_rank(1.0, **options)
    with pytest.raises(ValueError, match="parameter 'w': entries should be .* by the rank of this optimizer; make it"):
        other.load_state_dict(optimizer.state_dict())


# Names


def two(names: list[str], groups: int = 1, **options: Any) -> tuple[dict[str, nn.Parameter], Dion]:
    params = {name: nn.Parameter(torch.ones(4, 3)) for name in names}
    pairs = list(params.items())
    return params, Dion([{"params": pairs}] if groups == 1 else [{"params": [pair]} for pair in pairs], **options)


def with_state(params: dict[str, nn.Parameter], optimizer: Dion) -> State:
    for i, name in enumerate(sorted(params)):
        params[name].grad = torch.full((4, 3), float(i + 1))
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_parameters_are_found_by_name(prefix: str, groups: int) -> None:
    saved = with_state(*two([prefix + "a", prefix + "b"]))
    params, optimizer = two(["b", "a"], groups)
    optimizer.load_state_dict(saved)
    for i, name in enumerate("ab"):
        assert torch.equal(optimizer.state[params[name]]["momentum"], saved["state"][i]["momentum"]), name


def test_other_names() -> None:
    saved = with_state(*two(["a", "b"]))
    with pytest.raises(ValueError, match="should have the parameters of this optimizer, but lacks 'c' and has 'b'"):
        two(["a", "c"])[1].load_state_dict(saved)
    del saved["param_groups"][0]["param_names"]
    two(["a", "c"])[1].load_state_dict(saved)  # by position, then
    with pytest.raises(ValueError, match=r"param groups should have \[1, 1\] parameters, but have \[2\]"):
        two(["a", "c"], groups=2)[1].load_state_dict(saved)


def test_parameters_of_groups_with_other_options_in_one_group() -> None:
    params, optimizer = two(["a", "b"], groups=2)
    optimizer.param_groups[1]["lr"] = 0.5
    saved = with_state(params, optimizer)
    with pytest.raises(ValueError, match=r"lr should be one value, but was saved as 0.01 for 'a' and as 0.5 for 'b'"):
        two(["a", "b"])[1].load_state_dict(saved)
    saved["param_groups"][1]["lr"] = torch.tensor(0.01, dtype=torch.float64)
    two(["a", "b"])[1].load_state_dict(saved)


# Whatever is wrong


def entries(state: State) -> list[tuple[int, str]]:
    return [(i, key) for i, of_param in state["state"].items() for key in of_param]


def drop(state: State, where: tuple[int, str]) -> str:
    del state["state"][where[0]][where[1]]
    return r"entries should be"


def add(state: State, where: tuple[int, str]) -> str:
    state["state"][where[0]][where[1] + "_2"] = torch.zeros(2)
    return f"entries should be .* but are .*{where[1]}_2"


def rename(state: State, where: tuple[int, str]) -> str:
    state["state"][where[0]]["other"] = state["state"][where[0]].pop(where[1])
    return "entries should be .* but are .*'other'"


def reshape(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]]
    state["state"][where[0]][where[1]] = torch.zeros(*value.shape, 2, dtype=value.dtype)
    return f"shape of '{where[1]}' should be"


def widen(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]]
    shape = [*value.shape[:-1], value.shape[-1] + 1] if value.ndim else [1]
    state["state"][where[0]][where[1]] = torch.zeros(shape, dtype=value.dtype)
    return f"shape of '{where[1]}' should be"


def make_a_number(state: State, where: tuple[int, str]) -> str:
    assume(where[1] != "step")  # which may be one
    state["state"][where[0]][where[1]] = 3.0
    return f"'{where[1]}' should be a dense tensor, but is float"


def make_integers(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]]
    state["state"][where[0]][where[1]] = value.to(torch.int64)
    return f"dtype of '{where[1]}' should be one of .*int64"


def make_infinite(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]].clone()
    value.view(-1)[-1] = float("inf")
    state["state"][where[0]][where[1]] = value
    return f"'{where[1]}' should (have finite numbers|be a number of steps)"


def make_nan(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]].clone()
    value.view(-1)[0] = float("nan")
    state["state"][where[0]][where[1]] = value
    return f"'{where[1]}' should (have finite numbers|be a number of steps)"


def make_complex(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]]
    state["state"][where[0]][where[1]] = value.to(torch.complex64)
    return f"dtype of '{where[1]}' should be one of .*complex64"


def make_sparse(state: State, where: tuple[int, str]) -> str:
    value = state["state"][where[0]][where[1]]
    state["state"][where[0]][where[1]] = value.to_sparse()
    return f"'{where[1]}' should be a dense tensor"


def orphan(state: State, where: tuple[int, str]) -> str:
    state["state"]["ghost"] = state["state"].pop(where[0])
    return "'state' has 'ghost', which is in none of its param groups"


def not_a_dict(state: State, where: tuple[int, str]) -> str:
    state["state"][where[0]] = [1, 2]
    return rf"state\[{where[0]}\] should be a dict, but is list"


def group_without_params(state: State, where: tuple[int, str]) -> str:
    del state["param_groups"][where[0]]["params"]
    return rf"param_groups\[{where[0]}\] should be a dict with a list 'params'"


def group_twice(state: State, where: tuple[int, str]) -> str:
    state["param_groups"].append(state["param_groups"][where[0]])
    return "'param_groups' should have every parameter once"


def group_lost(state: State, where: tuple[int, str]) -> str:
    [key] = state["param_groups"].pop(where[0])["params"]
    del state["state"][key]
    return "should have the parameters of this optimizer, but lacks"


def other_algorithm(state: State, where: tuple[int, str]) -> str:
    group = state["param_groups"][where[0]]
    group["algorithm"] = "lion" if group["algorithm"] != "lion" else "dion"
    return "algorithm should be"


def wrong_option(state: State, where: tuple[int, str]) -> str:
    state["param_groups"][where[0]]["weight_decay"] = "much"
    return "saved weight_decay should be a number or a one-element tensor >= 0, but is 'much'"


def option_out_of_range(state: State, where: tuple[int, str]) -> str:
    state["param_groups"][where[0]]["lr"] = -1.0
    return "saved lr should be .*>= 0, but is -1.0"


CHANGES: list[Callable[[State, tuple[int, str]], str]] = [
    drop,
    add,
    rename,
    reshape,
    widen,
    make_a_number,
    make_integers,
    make_infinite,
    make_nan,
    make_complex,
    make_sparse,
    orphan,
    not_a_dict,
    group_without_params,
    group_twice,
    group_lost,
    other_algorithm,
    wrong_option,
    option_out_of_range,
]


@pytest.fixture(scope="module")
def saved() -> State:
    return content(trained())


@pytest.fixture(scope="module")
def target() -> MixedOptimizer:
    model, optimizer = run_of(ALONE, 5)
    train(ALONE, model, optimizer, range(1))
    return optimizer


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_state_that_is_wrong_changes_nothing(
    saved: State, target: MixedOptimizer, change: Callable[[State, tuple[int, str]], str], data: st.DataObject
) -> None:
    """Whichever entry is wrong, the error names it."""
    state, before = copy.deepcopy(saved), content(target)
    where = data.draw(st.sampled_from(entries(state)))
    assume(change is not drop or len(state["state"][where[0]]) > 1)  # without any entry there is no state yet
    message = change(state, where)
    if message.startswith(("entries", "shape", "dtype", "'" + where[1])):
        message = f"parameter '{list(GROUPS)[where[0]]}': .*{message}"
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        target.load_state_dict(state)
    assert "MixedOptimizer: loading a state" in str(caught.value)
    assert_same(content(target), before)


@settings(max_examples=100, deadline=None)
@given(
    state=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["state", "param_groups", "params", "lr", "0"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_what_is_no_state_at_all(state: Any) -> None:
    params, optimizer = two(["a"])
    before = copy.deepcopy(with_state(params, optimizer))
    with pytest.raises((TypeError, ValueError), match="Dion: loading a state"):
        optimizer.load_state_dict(state)
    assert_same(optimizer.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_other_than_the_options_say(dtype: torch.dtype) -> None:
    """As where a state has been read into one of another dtype, which rounds it."""
    w = nn.Parameter(torch.ones(4, 3))
    w.grad = torch.ones(4, 3)
    optimizer = Dion([("w", w)], state_dtype=torch.float32)
    optimizer.step()
    state = content(optimizer)
    state["state"][0]["momentum"] = state["state"][0]["momentum"].to(dtype)
    with pytest.raises(ValueError, match=rf"'w': dtype of 'momentum' should be torch.float32, .* but is {dtype}"):
        optimizer.load_state_dict(state)


def test_hooks_come_before_the_checks_and_after_the_change() -> None:
    params, optimizer = two(["a", "b"])
    saved = with_state(params, optimizer)
    wrapped, calls = {"inside": saved}, []
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state["inside"])
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("after"))
    optimizer.load_state_dict(wrapped)
    assert calls == ["after"]


def test_every_rule_is_here() -> None:
    assert {options["algorithm"] for _, options in GROUPS.values()} == set(RULES)
