"""A directory of a run may come from a stranger: no part of it may be a link, a pipe, or lead elsewhere."""

import stat
from collections.abc import Callable
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.results.directory import CHECKPOINTS, CONFIG, METRICS, PLOT, SAMPLE, SUMMARY, TENSORBOARD

FILES = (CONFIG, SUMMARY, METRICS, SAMPLE, PLOT)
FOLDERS = (CHECKPOINTS, TENSORBOARD)


def refuse_strange_parts(directory: Path) -> None:
    """Refuse a directory in which a name of a run's parts is not a plain file or folder.

    Reading and writing the part would otherwise reach a place outside of the directory, or wait for a pipe.

    Args:
        directory: of a run. It may be a link itself, as whoever has called the command has named it.

    Raises:
        UserError: a part is something else; it names the first one.
    """
    for name in FILES:
        _refuse(directory / name, stat.S_ISREG, "plain file")
    for name in FOLDERS:
        refuse_strange_folder(directory / name)


def refuse_strange_folder(path: Path) -> None:
    """Refuse a folder inside of the directory of a command that is a link, or no folder.

    Raises:
        UserError: it is there, and something else.
    """
    _refuse(path, stat.S_ISDIR, "folder")


def _refuse(path: Path, right: Callable[[int], bool], kind: str) -> None:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not right(mode):
        found = "a link" if stat.S_ISLNK(mode) else "something else"
        raise UserError(f"{path} should be a {kind} of the run, but is {found}; nothing was done")
