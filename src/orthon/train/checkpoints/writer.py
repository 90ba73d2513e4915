"""Write the files of one checkpoint from many ranks. The checkpoint gets its name when all files are whole."""

import os
import re
import shutil
import stat
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

from orthon.saving.files import PART, make_folder
from orthon.train.checkpoints.manifest import NAME, Digest, Manifest
from orthon.train.checkpoints.new_files import NewFiles
from orthon.train.checkpoints.newest import METADATA, checkpoints, folder

LEFT = re.compile(r"step-[0-9]{8,20}(\.old)?\.part")  # what a killed run leaves


@dataclass(frozen=True)
class Written(WriteResult):
    """What is known of an entry after it was written, with the digest of the file that holds it."""

    digest: Digest


class CheckpointWriter(FileSystemWriter):
    """Writes into the folder `step-….part`, and renames it when every rank has written its file.

    The folder is a new one, and so is every file in it. Nothing is written or deleted through a link.

    Args:
        directory: of the run.
        manifest: complete but for its `files`.
        keep: number of newest checkpoints to keep, this one included.
    """

    def __init__(self, directory: Path, manifest: Manifest, keep: int) -> None:
        self.target = folder(directory, manifest.step)
        self.part = self.target.with_name(f"{self.target.name}{PART}")
        super().__init__(self.part)
        self.fs = NewFiles()
        self.directory, self.manifest, self.keep = directory, manifest, keep

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy all tensors to main memory, as training will change them. PyTorch's copy fails for DTensors on a CPU."""
        return cast("dict[str, Any]", tree_map_only(Tensor, lambda value: value.to("cpu", copy=True), state_dict))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is. The folder is made later, when all ranks are known to have a plan."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Delete what killed runs have left, and make the folder. Called on one rank, before any rank writes."""
        make_folder(self.part.parent)
        for left in list(self.part.parent.iterdir()):
            if LEFT.fullmatch(left.name):
                remove(left)
        self.part.mkdir()  # an error if anything is there
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, and read it again for its digest."""
        future: Future[list[WriteResult]] = Future()
        results: list[WriteResult] = []
        if plan.items:  # without them, PyTorch would write an empty file
            results = super().write_data(plan, planner).wait()
        digests = {name: Digest.of(self.part / name) for name in {_file(result) for result in results}}
        future.set_result(
            [Written(each.index, each.size_in_bytes, each.storage_data, digests[_file(each)]) for each in results]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Give the checkpoint its name, and delete the oldest ones. Called on one rank, when all ranks have written."""
        super().finish(metadata, results)
        files = {_file(each): cast(Written, each).digest for of_one_rank in results for each in of_one_rank}
        files[METADATA] = Digest.of(self.part / METADATA)
        replace(self.manifest, files=dict(sorted(files.items()))).write(self.part / NAME)
        _sync(self.part)
        remove(self.target)  # an earlier one of this step, which was skipped as damaged
        self.part.rename(self.target)
        _sync(self.target.parent)
        # Checkpoints of later steps were skipped as damaged. They do not count; this run will replace them.
        done = checkpoints(self.directory)
        for old in done[: done.index(self.target) + 1][: -self.keep]:
            remove(old)


def remove(path: Path) -> None:
    """Delete a folder, or whatever is there. Of a link, delete the link and not what it points to.

    A checkpoint first loses its name, so that a half deleted folder does not look like a checkpoint.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(kind):
        path.unlink()
    else:
        shutil.rmtree(path if path.suffix == PART else path.rename(path.with_name(f"{path.name}.old{PART}")))


def _file(result: WriteResult) -> str:
    """Return the name of the file in which an entry lies."""
    name: str = result.storage_data.relative_path
    return name


def _sync(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
