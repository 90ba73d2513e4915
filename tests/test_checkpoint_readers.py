"""SafeReader and LoadPlanner: nothing in a checkpoint is executed, and the optimizer may have other options."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from orthon import Dion
from orthon.saving import LoadPlanner, SafeReader
from orthon.saving.chunks import check_covered


class Code:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def trained(dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> tuple[nn.Module, Dion]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4)).to(dtype)
    optimizer = Dion.for_model(model, **options)
    model(torch.randn(3, 8, dtype=dtype)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, model: nn.Module, optimizer: Dion, **extra: Any) -> None:
    flat = StateDictOptions(flatten_optimizer_state_dict=extra.pop("flat", False))
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=flat), **extra}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def load(folder: Path, model: nn.Module, optimizer: Dion, flat: bool = False, **extra: Any) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options), **extra}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=SafeReader(folder), planner=LoadPlanner(), no_dist=True)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoint", *trained())
    return tmp_path / "checkpoint"


# Nothing is executed


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(change(metadata)))


def code_in_description(folder: Path) -> None:
    def change(metadata: Any) -> Any:
        metadata.planner_data = {"x": Code(folder / "trace")}
        return metadata

    rewrite(folder, change)


def code_instead_of_description(folder: Path) -> None:
    rewrite(folder, lambda _: Code(folder / "trace"))


def no_description(folder: Path) -> None:
    rewrite(folder, lambda _: torch.Size([1]))


def lost_description(folder: Path) -> None:
    (folder / ".metadata").unlink()


def truncated_description(folder: Path) -> None:
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-100])


def empty_description(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"")


def truncated_file(folder: Path) -> None:
    (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:-100])


def lost_file(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def another_place(place: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder.parent / "outside").write_bytes((folder / "__0_0.distcp").read_bytes())

        def change(metadata: Any) -> Any:
            for value in metadata.storage_data.values():
                value.relative_path = place.format(folder.parent)
            return metadata

        rewrite(folder, change)

    return damage


def link(folder: Path) -> None:
    (folder / "__0_0.distcp").rename(folder.parent / "outside")
    (folder / "__0_0.distcp").symlink_to(folder.parent / "outside")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (code_in_description, r"\.metadata cannot be read: it names posix.mkdir, which is no part of"),
        (code_instead_of_description, r"\.metadata cannot be read: it names posix.mkdir"),
        (no_description, r"\.metadata is no description of a checkpoint"),
        (lost_description, r"there is no \.metadata; was it saved to its end"),
        (truncated_description, r"\.metadata cannot be read"),
        (empty_description, r"\.metadata cannot be read"),
        (truncated_file, r"lies at bytes .* of __0_0.distcp, which has \d+"),
        (lost_file, "there is no __0_0.distcp, where 'optimizer.* lies"),
        (another_place("../outside"), r"lies in '\.\./outside', outside its folder"),
        (another_place("{}/outside"), "lies in '/.*/outside', outside its folder"),
        (link, "lies in '__0_0.distcp', outside its folder"),
    ],
)
def test_checkpoints_that_are_not_trusted(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=rf"checkpoint {folder}: .*{message}"):
        SafeReader(folder).read_metadata()
    model, optimizer = trained(seed=1)
    before = torch.cat([value.flatten() for state in optimizer.state.values() for value in state.values()])
    with pytest.raises(dcp.CheckpointException):
        load(folder, model, optimizer)
    after = torch.cat([value.flatten() for state in optimizer.state.values() for value in state.values()])
    assert torch.equal(before, after)
    assert not (folder / "trace").exists()


def test_code_in_a_value(tmp_path: Path) -> None:
    model, optimizer = trained()
    save(tmp_path / "checkpoint", model, optimizer, other=Code(tmp_path / "trace"))
    with pytest.raises(dcp.CheckpointException, match="posix.mkdir"):
        load(tmp_path / "checkpoint", model, optimizer, other=None)
    assert not (tmp_path / "trace").exists()


def test_values_that_are_no_tensors(tmp_path: Path) -> None:
    model, optimizer = trained()
    values = {"number": 3, "text": "a", "list": [1, (2.0, None)], "dtype": torch.bfloat16, "size": torch.Size([2])}
    save(tmp_path / "checkpoint", model, optimizer, extra=values)
    state: dict[str, Any] = {"extra": dict.fromkeys(values)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=SafeReader(tmp_path / "checkpoint"), planner=LoadPlanner(), no_dist=True)
    assert state["extra"] == values


# State of other options


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("saved", "own", "dtype"),
    [
        ({}, {}, torch.float32),
        ({"rank_fraction": 0.5}, {"rank_fraction": 0.2}, torch.float32),
        ({"rank_fraction": 0.2}, {"rank_fraction": 1.0}, torch.float32),
        ({"state_dtype": torch.float64}, {}, torch.bfloat16),
        ({"lr": torch.tensor(0.3)}, {"lr": 0.2}, torch.float32),
    ],
)
def test_state_is_read_as_it_was_saved(
    tmp_path: Path, flat: bool, saved: dict[str, Any], own: dict[str, Any], dtype: torch.dtype
) -> None:
    """Through files as without them."""
    model, optimizer = trained(**saved)
    save(tmp_path / "checkpoint", model, optimizer, flat=flat)
    results = []
    for through_files in (True, False):
        other, loaded = trained(dtype, seed=1, **own)
        if through_files:
            load(tmp_path / "checkpoint", other, loaded, flat=flat)
        else:
            loaded.load_state_dict(optimizer.state_dict())
        results.append(loaded.state_dict())
    for i, state in results[1]["state"].items():
        for key, value in state.items():
            there = results[0]["state"][i][key]
            assert there.dtype == value.dtype, (i, key)
            assert torch.equal(there, value), (i, key)
    assert results[0]["param_groups"] == results[1]["param_groups"]


@pytest.mark.parametrize("flat", [False, True])
def test_an_older_checkpoint(tmp_path: Path, flat: bool) -> None:
    """An option that was not known then keeps the value of this run."""
    model, optimizer = trained(momentum=0.5)
    for group in optimizer.param_groups:
        group.pop("power_iterations", None)
    save(tmp_path / "checkpoint", model, optimizer, flat=flat)
    other, loaded = trained(seed=1, power_iterations=3, state_dtype=torch.float32)
    load(tmp_path / "checkpoint", other, loaded, flat=flat)
    assert loaded.param_groups[0]["power_iterations"] == 3
    assert loaded.param_groups[0]["momentum"] == 0.5


def test_entries_of_other_options_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", *trained(orthonormal_side="long"))
    model, optimizer = trained()
    with pytest.raises(ValueError, match="'hidden matrices': orthonormal_side should be 'long'"):
        load(tmp_path / "checkpoint", model, optimizer)


def test_a_parameter_that_was_not_saved(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", *trained())
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4))
    with pytest.raises(dcp.CheckpointException, match=r"Missing key in checkpoint state_dict: optimizer.state.3"):
        load(tmp_path / "checkpoint", model, Dion.for_model(model))


# Parameters without state, and tensors with holes


class Experts(nn.Module):
    """Three matrices, of which a step may use some."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x: torch.Tensor, used: list[int]) -> torch.Tensor:
        for i in used:
            x = self.experts[i](x)
        return x


def with_experts(used: list[int], *, frozen: int | None = None, seed: int = 0) -> tuple[Experts, Dion]:
    torch.manual_seed(seed)
    model = Experts()
    optimizer = Dion.for_model(model)
    if frozen is not None:
        model.experts[frozen].requires_grad_(False)
    if used:
        model(torch.randn(3, 6), used).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("used_before_loading", [[], [0, 1, 2]])
@pytest.mark.parametrize(("used", "frozen"), [([0, 2], None), ([2], None), ([], None), ([0, 1], 2)])
def test_parameters_that_had_no_state_start_anew(
    tmp_path: Path, used: list[int], frozen: int | None, used_before_loading: list[int], flat: bool
) -> None:
    """An expert without tokens, a frozen part, or nothing at all yet. As a file of the state dict would."""
    model, optimizer = with_experts(used, frozen=frozen)
    raw = {"optimizer": _as_dcp_has_it(model, optimizer, flat=flat)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(raw, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    other, loaded = with_experts(used_before_loading, seed=1)
    load(tmp_path / "checkpoint", other, loaded, flat=flat)
    for (name, param), there in zip(model.named_parameters(), other.parameters(), strict=True):
        saved, found = optimizer.state.get(param, {}), loaded.state.get(there, {})
        assert saved.keys() == found.keys(), name
        for key, value in saved.items():
            assert torch.equal(value, found[key]), (name, key)
    other(torch.randn(3, 6), [0, 1, 2]).square().sum().backward()
    loaded.step()
    assert all(loaded.state[param] for param in other.parameters())


def _as_dcp_has_it(model: nn.Module, optimizer: Dion, *, flat: bool) -> dict[str, Any]:
    """Return the state as torch writes it, which makes none for parameters that have had no gradient."""
    names = {param: name for name, param in model.named_parameters()}
    groups = [{**g, "params": [names[p] for p in g["params"]]} for g in optimizer.param_groups]
    state = {names[p]: dict(optimizer.state[p]) for p in names if optimizer.state.get(p)}
    if not flat:
        return {"state": state, "param_groups": groups}
    flattened = {f"state.{name}.{key}": value for name, of_one in state.items() for key, value in of_one.items()}
    for group in groups:
        for name in group["params"]:
            flattened |= {f"param_groups.{name}.{key}": value for key, value in group.items() if key != "params"}
    return flattened


def lose_a_chunk(saved: Any) -> Any:
    saved.chunks = saved.chunks[:-1]


def shorten_a_chunk(saved: Any) -> Any:
    saved.chunks[0].sizes = torch.Size([saved.chunks[0].sizes[0] - 1, *saved.chunks[0].sizes[1:]])


def move_a_chunk(saved: Any) -> Any:
    saved.chunks[-1].offsets = saved.chunks[0].offsets


@pytest.mark.parametrize("damage", [lose_a_chunk, shorten_a_chunk, move_a_chunk])
def test_tensors_with_holes(folder: Path, damage: Callable[[Any], Any]) -> None:
    key = "optimizer.state.1.weight.momentum"

    def change(metadata: Any) -> Any:
        whole = metadata.state_dict_metadata[key]
        [chunk] = whole.chunks
        upper = type(chunk)(offsets=torch.Size([0, 0]), sizes=torch.Size([2, 6]))
        lower = type(chunk)(offsets=torch.Size([2, 0]), sizes=torch.Size([4, 6]))
        whole.chunks = [upper, lower]
        check_covered(key, whole)
        damage(whole)
        return metadata

    rewrite(folder, change)
    model, optimizer = trained(seed=1)
    with pytest.raises(
        dcp.CheckpointException, match=rf"'{key}' has \d chunks, which are not all of its shape \(6, 6\)"
    ):
        load(folder, model, optimizer)


@pytest.mark.parametrize(
    ("size", "chunks", "whole"),
    [
        ((), [((), ())], True),
        ((0, 3), [], True),
        ((4,), [], False),
        ((4, 4), [((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 2)), ((2, 2), (2, 2))], True),
        ((4, 4), [((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 2)), ((2, 3), (2, 1))], False),
        ((4, 4), [((0, 0), (4, 3)), ((0, 1), (4, 3))], True),  # overlapping
        ((6,), [((0,), (4,)), ((0,), (4,)), ((5,), (1,))], False),  # as many numbers as it has, and more
    ],
)
def test_what_chunks_cover(size: Any, chunks: list[Any], whole: bool) -> None:
    of_tensor = [ChunkStorageMetadata(torch.Size(start), torch.Size(length)) for start, length in chunks]
    saved = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(size), of_tensor)
    if whole:
        check_covered("x", saved)
    else:
        with pytest.raises(ValueError, match="'x' has . chunks, which are not all of its shape"):
            check_covered("x", saved)
