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
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from orthon import Dion
from orthon.saving import LoadPlanner, SafeReader


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
        (no_description, r"\.metadata cannot be read: it is no description of a checkpoint"),
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
