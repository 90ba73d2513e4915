"""A directory of a run may come from a stranger: no part of it may be a link, a pipe, or lead elsewhere."""

import stat
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.results.directory import CONFIG, PLOT, SAMPLE, SUMMARY

FILES = (CONFIG, SUMMARY, "metrics.jsonl", SAMPLE, PLOT)
FOLDERS = ("checkpoints", "tensorboard")


def refuse_strange_parts(directory: Path) -> None:
    """Refuse a directory in which a name of a run's parts is not a plain file or folder.

    Reading and writing the part would otherwise reach a place outside of the directory, or wait for a pipe.

    Args:
        directory: Of a run. It may be a link itself, as whoever has called the command has named it.

    Raises:
        UserError: A part is something else; it names the first one.
    """
    for names, right, kind in ((FILES, stat.S_ISREG, "plain file"), (FOLDERS, stat.S_ISDIR, "folder")):
        for name in names:
            try:
                mode = (directory / name).lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not right(mode):
                found = "a link" if stat.S_ISLNK(mode) else "something else"
                raise UserError(f"{directory / name} should be a {kind} of the run, but is {found}; nothing was done")
