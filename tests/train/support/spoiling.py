"""What can be spoiled in the directory of a run: each function here makes one that spoils a part.

A stranger can write manifests, so that the digests fit whatever is spoiled.
"""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from orthon.train.checkpoints.manifest import Digest

Spoil = Callable[[Path], Any]  # takes the directory of the run
DATA = "__0_0.distcp"


def checkpoint(run: Path) -> Path:
    [path] = (run / "checkpoints").iterdir()
    return path


def change_manifest(run: Path, **changes: object) -> None:
    path = checkpoint(run) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def admit(run: Path, *names: str) -> None:
    files = json.loads((checkpoint(run) / "manifest.json").read_text())["files"]
    for name in names:
        digest = Digest.of(checkpoint(run) / name)
        files[name] = {"bytes": digest.bytes, "sha256": digest.sha256}
    change_manifest(run, files=files)


def description(content: Callable[[bytes], bytes]) -> Spoil:
    def spoil(run: Path) -> None:
        path = checkpoint(run) / ".metadata"
        path.write_bytes(content(path.read_bytes()))
        admit(run, ".metadata")

    return spoil


def metadata(change: Callable[[Any], Any]) -> Spoil:
    """Change torch's own objects, and write them as torch does."""

    def content(before: bytes) -> bytes:
        found = pickle.loads(before)
        change(found)
        return pickle.dumps(found)

    return description(content)


def flipped(seed: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        draw, result = random.Random(seed), bytearray(content)
        for _ in range(1 + seed % 4):
            result[draw.randrange(len(result))] ^= 1 << draw.randrange(8)
        return bytes(result)

    return flip


class Liar(PurePosixPath):
    """Says one thing as a text, and another as parts."""

    def __reduce__(self) -> tuple[Any, ...]:
        return PurePosixPath, ("..", "..", "..", "outside", "secret"), {"_str": DATA, "_drv": "", "_root": ""}


def elsewhere(place: object) -> Spoil:
    def change(found: Any) -> None:
        for value in found.storage_data.values():
            value.relative_path = place

    return metadata(change)


def places(**changes: object) -> Spoil:
    def change(found: Any) -> None:
        for key, value in changes.items():
            setattr(next(iter(found.storage_data.values())), key, value)

    return metadata(change)


def first_tensor(change: Callable[[Any], Any]) -> Spoil:
    return metadata(lambda found: change(next(v for v in found.state_dict_metadata.values() if hasattr(v, "chunks"))))


def resize(size: tuple[int, ...]) -> Spoil:
    def change(entry: Any) -> None:
        entry.size = torch.Size(size)
        entry.chunks = [ChunkStorageMetadata(torch.Size([0] * len(size)), torch.Size(size))]

    return first_tensor(change)


def rename(name: object) -> Spoil:
    def change(found: Any) -> None:
        first, *_ = found.state_dict_metadata
        for named in (found.state_dict_metadata, found.planner_data):
            named[name] = named.pop(first)

    return metadata(change)


def path_of_first(path: object) -> Spoil:
    return metadata(lambda found: found.planner_data.update({next(iter(found.planner_data)): path}))


def value(key: str, content: Callable[[], bytes]) -> Spoil:
    """Let one tensor or value be any bytes, at the end of the file."""

    def spoil(run: Path) -> None:
        path, new = checkpoint(run) / DATA, content()
        start = path.stat().st_size
        with path.open("ab") as file:
            file.write(new)

        def change(found: Any) -> None:
            index = next(index for index in found.storage_data if key in index.fqn)
            place = found.storage_data[index]
            place.offset, place.length = start, max(len(new), 1)

        metadata(change)(run)
        admit(run, DATA)

    return spoil


def linked(name: str, *, folder: bool = False) -> Spoil:
    def spoil(run: Path) -> None:
        path = run / name
        target = run.parent / "outside" / ("folder" if folder else "secret")
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, dirs_exist_ok=True)
            shutil.rmtree(path)
        elif path.exists():
            target.write_bytes(path.read_bytes())
            path.unlink()
        path.symlink_to(target)

    return spoil


def replaced(name: str, make: Callable[[Path], Any]) -> Spoil:
    def spoil(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)

    return spoil


def written(name: str, content: str | bytes) -> Spoil:
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def manifest_text(content: str | bytes) -> Spoil:
    return lambda run: written(f"checkpoints/{checkpoint(run).name}/manifest.json", content)(run)


def in_checkpoint(make: Callable[[Path], Any], name: str = DATA) -> Spoil:
    def spoil(run: Path) -> None:
        (checkpoint(run) / name).unlink(missing_ok=True)
        make(checkpoint(run) / name)

    return spoil


def one_metric(**changes: object) -> Spoil:
    def spoil(run: Path) -> None:
        path = run / "metrics.jsonl"
        first, *rest = path.read_text().splitlines(keepends=True)
        path.write_text(json.dumps({**json.loads(first), **changes}) + "\n" + "".join(rest))

    return spoil
