"""Checkpoints in which some parameters have no state yet, or in whose tensors there are holes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

from orthon import Dion
from orthon.saving import SafeReader
from orthon.saving.chunks import check_covered
from tests.test_checkpoint_readers import load, rewrite, save, trained


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
def test_tensors_with_holes(tmp_path: Path, damage: Callable[[Any], Any]) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, *trained())
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
    reason = rf"'{key}' has \d chunks, which are not all of its shape \(6, 6\)"
    with pytest.raises(ValueError, match=reason):
        SafeReader(folder).read_metadata()
    # Before torch 2.13, torch may keep the reason to itself.
    said = "metadata is None" if torch.__version__ < (2, 13) else reason
    with pytest.raises(dcp.CheckpointException, match=said):
        load(folder, model, optimizer)


@pytest.mark.parametrize(
    ("size", "chunks", "whole"),
    [
        ((), [((), ())], True),
        ((0, 3), [], True),
        ((4,), [], False),
        ((4, 4), [((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 2)), ((2, 2), (2, 2))], True),
        ((4, 4), [((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 2)), ((2, 3), (2, 1))], False),
        ((4, 4), [((0, 0), (4, 3)), ((0, 1), (4, 3))], False),  # overlapping: which one is read last would decide
        ((4, 4), [((0, 0), (4, 2)), ((0, 2), (4, 2)), ((0, 0), (4, 4))], False),
        ((4, 4), [((0, 0), (4, 5))], False),  # more than it has
        ((4, 4), [((0, 0), (1, 4)), ((1, 0), (3, 1)), ((1, 1), (3, 3))], True),
        ((3, 3), [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))], True),
        ((4,), [((0,), (4,)), ((4,), (0,))], True),  # of a process that has nothing
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


@pytest.mark.parametrize("algorithm", ["dion", "adamw"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_group_without_parameters(tmp_path: Path, place: int, algorithm: str) -> None:
    """Torch hands over nothing of it, not even its options, and takes no more than one."""

    def made() -> tuple[Experts, Dion]:
        torch.manual_seed(0)
        model = Experts()
        first, *rest = model.named_parameters()
        groups: list[dict[str, Any]] = [{"params": [first]}, {"params": rest}]
        groups.insert(place, {"params": [], "algorithm": algorithm, "lr": 0.3})
        return model, Dion(groups, others="adamw")

    (model, optimizer), (other, loaded) = made(), made()
    for seed in range(2):
        torch.manual_seed(seed)
        model(torch.randn(3, 6), [0, 1, 2]).square().sum().backward()
        optimizer.step()
    save(tmp_path / "checkpoint", model, optimizer)
    load(tmp_path / "checkpoint", other, loaded)
    assert [group["lr"] for group in loaded.param_groups] == [group["lr"] for group in optimizer.param_groups]
    for (name, param), there in zip(model.named_parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, loaded.state[there][key]), (name, key)
