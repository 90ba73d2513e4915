"""Readers for checkpoints of torch.distributed.checkpoint (DCP), which execute nothing of what they read.

The options of the optimizer may have changed since the checkpoint was saved::

    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, storage_reader=SafeReader(path), planner=LoadPlanner())
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.tensor import DTensor, Replicate

from orthon.saving.chunks import check_covered
from orthon.saving.options import BEFORE
from orthon.sharding import local

_Path = tuple[str | int, ...]  # the keys that lead to a value in a nested state dict

# The classes that the description of a checkpoint consists of, beside dtypes.
_METADATA_CLASSES = {
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


class SafeReader(FileSystemReader):
    """A FileSystemReader for checkpoints from sources that you do not trust.

    The description of a checkpoint is a pickle, and a pickle can name any code. This reader takes nothing but torch's
    own classes of descriptions. It does not read files outside the checkpoint's folder.

    Args:
        path: the folder of the checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """Return the description of the checkpoint.

        Raises:
            ValueError: if it cannot be read, names anything else, or does not fit the files in the folder.
        """
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except FileNotFoundError as error:
            raise ValueError(f"checkpoint {self.path}: there is no {path.name}; was it saved to its end?") from error
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint {self.path}: {path.name} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError(f"checkpoint {self.path}: {path.name} is no description of a checkpoint")
        self._check_files(metadata)
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata

    def _check_files(self, metadata: Metadata) -> None:
        sizes: dict[str, int] = {}
        for index, place in metadata.storage_data.items():
            name = str(place.relative_path)
            if name not in sizes:
                file = Path(self.path, name)
                if name != file.name or file.is_symlink():
                    raise ValueError(f"checkpoint {self.path}: {index.fqn!r} lies in {name!r}, outside its folder")
                if not file.is_file():
                    raise ValueError(f"checkpoint {self.path}: there is no {name}, where {index.fqn!r} lies")
                sizes[name] = file.stat().st_size
            if not 0 <= place.offset <= place.offset + place.length <= sizes[name]:
                raise ValueError(
                    f"checkpoint {self.path}: {index.fqn!r} lies at bytes {place.offset} to "
                    f"{place.offset + place.length} of {name}, which has {sizes[name]}"
                )


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
        content, key = torch.load(value, weights_only=True), read_item.dest_index.fqn
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


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint's description")


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
            added[key] = BEFORE.get(key.rpartition(".")[2], own)
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
