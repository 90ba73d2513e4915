"""Find the newest checkpoint of a run that is whole."""

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orthon.saving import SafeReader
from orthon.saving.shown import one_line
from orthon.train.checkpoints.manifest import NAME, Digest, Manifest
from orthon.train.errors import UserError
from orthon.train.processes.ranks import Processes
from orthon.train.results.directory import CHECKPOINTS

METADATA = ".metadata"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    path: Path
    manifest: Manifest


def folder(directory: Path, step: int) -> Path:
    """Return the folder for the checkpoint of a step."""
    return directory / CHECKPOINTS / f"step-{step:08d}"


def checkpoints(directory: Path) -> list[Path]:
    """Return the folders in the directory of a run whose names are those of checkpoints, oldest first."""
    folder = directory / CHECKPOINTS
    if folder.is_symlink():  # to another run, or to anywhere
        raise UserError(f"{folder} is a link, and should be a folder of this run")
    named = [path for path in folder.glob("step-*") if re.fullmatch(r"step-[0-9]{8,20}", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(
    directory: Path, ranks: Processes, say: Callable[[str], None], *, required: bool = False
) -> Checkpoint | None:
    """Return the newest checkpoint of a run that is whole. All ranks call it together, each reads a part of the files.

    Args:
        directory: of the run.
        ranks: who takes part.
        say: gets a line for each checkpoint that is skipped.
        required: whether there must be one.

    Returns:
        None if no checkpoint is whole.

    Raises:
        UserError: no checkpoint is whole, and one is required.
    """
    skipped: list[str] = []
    good = None
    for path in reversed(ranks.on_main(lambda: checkpoints(directory))):
        manifest, fault = ranks.on_main(lambda path=path: _look_at(path))  # type: ignore[misc]
        if manifest is not None:
            mine = sorted(manifest.files)[ranks.rank :: ranks.world]
            changed = _first_changed(path, manifest, mine)
            fault = next(filter(None, ranks.gather(changed)), None)
        if manifest is not None and fault is None:
            good = Checkpoint(path, manifest)
            break
        skipped.append(f"checkpoint {path} is skipped ({fault})")
    if good is None and required:
        raise UserError("; ".join([f"there is no checkpoint in {directory} to go on from", *skipped]))
    for line in skipped:
        say(f"{line}: {'beginning anew' if good is None else f'going on from {good.path}'}")
    return good


def _look_at(path: Path) -> tuple[Manifest | None, str | None]:
    """Return the manifest of a checkpoint, or else what is wrong with it. The content of large files is not read."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise ValueError("it is not a folder")
        for entry in sorted(path.iterdir()):
            if not stat.S_ISREG(entry.lstat().st_mode):
                raise ValueError(f"{_shown_name(entry)} in it is not a plain file")
        manifest = Manifest.read(path / NAME)
        if path != folder(path.parent.parent, manifest.step):
            raise ValueError(f"its {NAME} is of step {manifest.step}")
        if METADATA not in manifest.files:
            raise ValueError(f"its {NAME} names no {METADATA}")
        for name, written in manifest.files.items():
            size = (path / name).stat().st_size
            if size != written.bytes:
                raise ValueError(f"its {name} has {size} bytes instead of {written.bytes}")
        if Digest.of(path / METADATA) != manifest.files[METADATA]:
            raise ValueError(f"its {METADATA} has changed since it was written")
        SafeReader(path).read_metadata()
    except FileNotFoundError as error:
        return None, f"it has no {_shown_name(Path(error.filename))}"
    except Exception as error:  # damaged bytes can raise anything
        return None, one_line(str(error).removeprefix(f"checkpoint {path}: "))
    return manifest, None


def _shown_name(path: Path) -> str:
    """Return the name of a file, whatever it is, for a message."""
    return one_line(path.name, limit=120)


def _first_changed(path: Path, manifest: Manifest, names: list[str]) -> str | None:
    """Return what is wrong with the first of these files whose content has changed; None if all are right."""
    for name in names:
        try:
            if Digest.of(path / name) != manifest.files[name]:
                return f"its {name} has changed since it was written"
        except OSError as error:
            return f"its {name} cannot be read: {error.strerror}"
        except ValueError as error:  # it has become a link
            return one_line(str(error))
    return None
