"""Readers for checkpoints of torch.distributed.checkpoint (DCP), which execute nothing of what they read.

The options of the optimizer may have changed since the checkpoint was saved::

    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, storage_reader=SafeReader(path), planner=LoadPlanner())
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem
from torch.distributed.checkpoint.planner import LoadPlanner as DCPLoadPlanner
from torch.distributed.tensor import DTensor, Replicate
from torch.futures import Future

from orthon.saving.chunks import check_covered
from orthon.saving.files import Part, open_plain, read_plain
from orthon.saving.options import BEFORE
from orthon.saving.shown import shown
from orthon.saving.untrusted.as_torch import torch_metadata
from orthon.saving.untrusted.description import Description, read_description
from orthon.saving.untrusted.errors import RefusedError
from orthon.saving.untrusted.fits import check_places, check_tensors
from orthon.saving.untrusted.torch_file import read_torch_file
from orthon.sharding import local

_Path = tuple[str | int, ...]  # the keys that lead to a value in a nested state dict

LARGEST = 2**30  # bytes of a description


class SafeReader(FileSystemReader):
    """A FileSystemReader for checkpoints from sources that you do not trust.

    The description of a checkpoint is a pickle, and a pickle can name any code. This reader reads it as data, checks
    that data, and makes torch's objects anew. Tensors and other values are read in the same way: none of them takes
    more memory than its file has bytes. No file outside the checkpoint's folder is read, and no link followed.

    Args:
        path: the folder of the checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)  # without torch's extensions, which decode files

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """Return the description of the checkpoint.

        Raises:
            ValueError: if it cannot be read, says anything else, or does not fit the files in the folder.
        """
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            description = read_description(read_plain(path, limit=LARGEST))
        except FileNotFoundError as error:
            raise ValueError(f"checkpoint {self.path}: there is no {path.name}; was it saved to its end?") from error
        except ValueError as error:
            raise ValueError(f"checkpoint {self.path}: {path.name} cannot be read: {error}") from error
        try:
            check_places(((key, place) for (key, _), place in description.places.items()), self._sizes(description))
            check_tensors(description)
        except RefusedError as error:
            raise ValueError(f"checkpoint {self.path}: {error}") from error
        return torch_metadata(description, folder=Path(self.path), load_id=self.load_id)

    def read_data(self, plan: LoadPlan, planner: DCPLoadPlanner) -> Future[None]:
        """Read what a plan asks for. Each value is made anew from what has been checked, whatever the planner does.

        Raises:
            ValueError: if a file is damaged, or has anything but tensors and plain values.
        """
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in by_file.items():
            with open_plain(Path(self.path, name)) as file:
                for item in items:
                    self._read(item, file, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, item: ReadItem, file: io.BufferedReader, planner: DCPLoadPlanner) -> None:
        key = item.storage_index.fqn
        place = self.storage_data[item.storage_index]
        part = Part(file, place.offset, place.length)
        try:
            value = read_torch_file(part)
        except RefusedError as error:
            raise ValueError(f"checkpoint {self.path}: {shown(key)} cannot be read: {error}") from error
        if item.type == LoadItemType.BYTE_IO:
            content = io.BytesIO()
            torch.save(value, content)
            content.seek(0)
            planner.load_bytes(item, content)
            return
        if not isinstance(value, Tensor):
            raise ValueError(
                f"checkpoint {self.path}: {shown(key)} should be a tensor, but is a {type(value).__name__}"
            )
        target = planner.resolve_tensor(item).detach()
        ends = [start + length for start, length in zip(item.storage_offsets, item.lengths, strict=True)]
        if value.ndim != len(ends) or any(end > length for end, length in zip(ends, value.shape, strict=True)):
            raise ValueError(f"checkpoint {self.path}: {shown(key)} has a chunk of another shape than its description")
        target.copy_(value[tuple(map(slice, item.storage_offsets, ends))])
        planner.commit_tensor(item, target)

    def _sizes(self, description: Description) -> dict[str, int]:
        """Return the sizes of all files that a description names, which are plain ones in the folder."""
        sizes: dict[str, int] = {}
        for (key, _), place in description.places.items():
            name = place.file
            if name in sizes:
                continue
            file = Path(self.path, name) if name.isprintable() and len(name) < 256 else None
            if file is None or name != file.name or name in (".", "..") or file.is_symlink():
                raise RefusedError(f"{shown(key)} lies in {shown(name)}, outside its folder")
            if not file.is_file():
                raise RefusedError(f"there is no {name}, where {shown(key)} lies")
            sizes[name] = file.stat().st_size
        return sizes


class LoadPlanner(DefaultLoadPlanner):
    """A DefaultLoadPlanner for optimizers whose options have changed since their state was saved.

    It reads every entry of the state in the shape and the dtype in which it was saved, and the options that were saved.
    `set_optimizer_state_dict` then calls `load_state_dict`, which decides what becomes of them. Without this planner,
    DCP refuses a right factor of another rank, and a state that an older version saved without some option. It also
    casts the saved state to the dtype of the new one. A parameter that had no state yet has none after loading, and
    starts anew.
    """

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Change what is to be loaded, in `state_dict`, to what was saved.

        Raises:
            ValueError: if the chunks of a tensor are not all of it.
        """
        assert metadata is not None
        for key, value in metadata.state_dict_metadata.items():
            if isinstance(value, TensorStorageMetadata):
                check_covered(key, value)
        saved, added = _saved(metadata), []
        self._anew: set[tuple[_Path, str]] = set()  # parameters without a saved state
        self._groups_to_come = sum(path[-1:] == ("params",) for path in (metadata.planner_data or {}).values())
        for path, state in list(_optimizer_states(state_dict)):
            if "param_groups" in state:
                self._anew |= {(path, name) for name in _expect_saved(state, _at(saved, path))}
            else:
                added.append((state, _expect_saved_flat(state, _at(saved, path))))
        for state, options in added:
            for key in options:
                del state[key]
        super().set_up_planner(state_dict, metadata, is_coordinator)
        for state, options in added:  # they keep the values of this run
            state.update(options)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take over a value that is no tensor, if it holds no code."""
        content, key = read_torch_file(value), read_item.dest_index.fqn
        if self.flatten_state_dict:
            path = self.mappings[key]
            set_element(self.original_state_dict, path, content)
            if self._anew and path[-1] == "params":
                self._seen(path[:-3], content)
        else:
            self.state_dict[key] = content

    def _seen(self, path: _Path, names: list[str]) -> None:
        """Take note of the parameters of a saved param group. One in no group is none of the saved optimizer's."""
        self._anew -= {(path, str(name)) for name in names}
        self._groups_to_come -= 1
        if self._anew and self._groups_to_come == 0:
            above, name = min(self._anew, key=str)
            key = ".".join(map(str, (*above, "state", name)))
            raise ValueError(f"Missing key in checkpoint state_dict: {key}; it is in none of the saved param groups")


def _saved(metadata: Metadata) -> dict[str | int, Any]:
    """Return the descriptions of all values in a checkpoint, nested as the values were."""
    paths: dict[str, _Path] = metadata.planner_data or {}
    tree: dict[str | int, Any] = {}
    for key, value in metadata.state_dict_metadata.items():
        *above, last = paths.get(key, (key,))
        node = tree
        for step in above:
            node = node.setdefault(step, {})
        node[last] = value
    return tree


def _at(saved: dict[str | int, Any], path: _Path) -> Any:
    """Return the description at a path; None if nothing is saved there."""
    node: Any = saved
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _leaves(saved: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Yield all descriptions with their paths."""
    if isinstance(saved, dict):
        for step, below in saved.items():
            yield from _leaves(below, (*path, step))
    else:
        yield path, saved


def _optimizer_states(state_dict: Any, path: _Path = ()) -> Iterator[tuple[_Path, dict[str, Any]]]:
    """Yield the optimizers' state dicts inside a nested state dict, with their paths; some may be flattened."""
    if not isinstance(state_dict, dict):
        return
    if {"state", "param_groups"} <= state_dict.keys() or any(str(k).startswith("param_groups.") for k in state_dict):
        yield path, state_dict
        return
    for key, value in state_dict.items():
        yield from _optimizer_states(value, (*path, str(key)))


def _expect_saved(state: dict[str, Any], saved: Any) -> list[str]:
    """Change an optimizer's state dict so that it has the entries and the options that were saved.

    Returns:
        the parameters that had no state yet. They have none then, so that they start anew.
    """
    without = []
    for param, entries in state["state"].items():
        there = _at(saved, ("state", str(param)))
        own = dict(entries)
        entries.clear()
        if there is None:
            without.append(str(param))
            continue
        for path, value in _leaves(there):
            is_tensor = isinstance(value, TensorStorageMetadata)
            set_element(entries, path, _like_saved(own.get(path[0]), value) if is_tensor else own.get(path[0]))
    groups = _at(saved, ("param_groups",))
    if groups is not None:
        state["param_groups"] = []
        for path, value in _leaves(groups, ("param_groups",)):
            set_element(state, path, _like_saved(None, value) if isinstance(value, TensorStorageMetadata) else None)
    return without


def _expect_saved_flat(state: dict[str, Any], saved: Any) -> dict[str, Any]:
    """Change a flattened state dict in the same way. Return the options that were not saved."""
    added = {}
    for key in _without_state(state, saved):
        del state[key]
    for key, own in state.items():
        value = _at(saved, (key,))
        if isinstance(value, TensorStorageMetadata):
            state[key] = _like_saved(own, value)
        elif value is None and key.startswith("param_groups."):
            of_param, _, option = key.rpartition(".")
            added[key] = BEFORE.get(str(state.get(f"{of_param}.algorithm")), {}).get(option, own)
    return added


def _without_state(state: Mapping[str, Any], saved: Any) -> list[str]:
    """Return the keys of a flattened state dict that belong to parameters which were saved without any state."""
    known = {key.removeprefix("param_groups.").rpartition(".")[0] for key in saved if key.startswith("param_groups.")}
    with_state = {name for key in saved if key.startswith("state.") for name in _beginnings(key)}
    return [key for key in state if key.startswith("state.") and _beginnings(key) & known - with_state]


def _beginnings(key: str) -> set[str]:
    """Return what may be the parameter in "state.parameter.entry": both may have dots in their names."""
    parts = key.split(".")[1:]
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _like_saved(own: Any, saved: TensorStorageMetadata) -> Tensor:
    """Return a tensor into which the saved one can be read: `own` if shape and dtype fit, otherwise a new one."""
    size, dtype = saved.size, saved.properties.dtype
    if not isinstance(own, Tensor):
        return torch.empty(size, dtype=dtype, device="cpu")
    if own.shape == size:
        return own if own.dtype == dtype else torch.empty_like(own, dtype=dtype)
    if isinstance(own, DTensor):  # whole on every process, because the parts would depend on the shape
        mesh = own.device_mesh
        part = torch.empty(size, dtype=dtype, device=local(own).device)
        return DTensor.from_local(part, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return torch.empty(size, dtype=dtype, device=own.device)
