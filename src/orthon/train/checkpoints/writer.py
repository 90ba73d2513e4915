"""The files of one checkpoint, written by many ranks; they get its name when all are whole."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.utils._pytree import tree_map_only

from orthon.train.checkpoints.manifest import NAME, Digest, Manifest
from orthon.train.checkpoints.newest import METADATA, checkpoints, folder
from orthon.train.results.directory import PART


@dataclass(frozen=True)
class Written(WriteResult):
    """What becomes known of an entry once it is written, with the digest of the file that it lies in."""

    digest: Digest


class CheckpointWriter(FileSystemWriter):
    """Writes into `step-….part`, and renames it when every rank has written its file.

    Args:
        directory: Of the run.
        manifest: All of it but the files.
        keep: Newest checkpoints to keep, this one included.
    """

    def __init__(self, directory: Path, manifest: Manifest, keep: int) -> None:
        self.target = folder(directory, manifest.step)
        self.part = self.target.with_name(f"{self.target.name}{PART}")
        super().__init__(self.part)
        self.directory, self.manifest, self.keep = directory, manifest, keep

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy what training will change to main memory; torch's own way fails on divided tensors of a CPU."""
        return cast("dict[str, Any]", tree_map_only(Tensor, lambda value: value.to("cpu", copy=True), state_dict))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is. The folder is made once it is known that all ranks have one."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Delete what killed runs have left behind: here, on one rank, before any rank writes."""
        for left in list(self.part.parent.glob(f"step-*{PART}")):
            remove(left)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, and read it for its digest."""
        future: Future[list[WriteResult]] = Future()
        results: list[WriteResult] = []
        if plan.items:  # else there would be an empty file
            self.part.mkdir(parents=True, exist_ok=True)
            results = super().write_data(plan, planner).wait()
        digests = {name: Digest.of(self.part / name) for name in {_file(result) for result in results}}
        future.set_result(
            [Written(each.index, each.size_in_bytes, each.storage_data, digests[_file(each)]) for each in results]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Give the checkpoint its name, and delete the oldest ones; on one rank, when all have written."""
        super().finish(metadata, results)
        files = {_file(each): cast(Written, each).digest for of_one_rank in results for each in of_one_rank}
        files[METADATA] = Digest.of(self.part / METADATA)
        replace(self.manifest, files=dict(sorted(files.items()))).write(self.part / NAME)
        _sync(self.part)
        remove(self.target)  # one that was passed over as damaged
        self.part.rename(self.target)
        _sync(self.target.parent)
        # Those of later steps were passed over: they do not count, and give way when this run comes to their step.
        done = checkpoints(self.directory)
        for old in done[: done.index(self.target) + 1][: -self.keep]:
            remove(old)


def remove(path: Path) -> None:
    """Delete a folder, if it is there; a link to one, not what it points to.

    A checkpoint loses its name first, so that one that is half deleted does not look like one.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path if path.suffix == PART else path.rename(path.with_name(f"{path.name}.old{PART}")))


def _file(result: WriteResult) -> str:
    """The name of the file in which an entry lies."""
    name: str = result.storage_data.relative_path
    return name


def _sync(directory: Path) -> None:
    """Wait until the disk knows the names in a directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
