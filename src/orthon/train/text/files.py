"""Find the files that a setting names."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.results.directory import CHECKPOINTS, CONFIG

CACHE = "token-cache"  # folder beside the directories of runs


@dataclass(frozen=True)
class Named:
    """Paths in a setting.

    Attributes:
        paths: files or directories.
        setting: the setting that names them, for errors.
        without: resolved paths that are left out, as they are held out.
        own: resolved directories that are not walked, as this command writes them.
    """

    paths: Sequence[str]
    setting: str = "data.paths"
    without: Collection[Path] = ()
    own: Collection[Path] = ()

    def resolved(self) -> set[Path]:
        """Return every named path, and every file in a named directory, without links on the way."""
        paths = [Path(path) for path in self.paths]
        inside = [file for path in paths if path.is_dir() for file in _inside(path, self)]
        return {path.resolve() for path in paths + inside}


def find_files(named: Named, pattern: str) -> Iterator[tuple[Path, str]]:
    """Files that are named, and files in a named directory that match the pattern; each with its name for the corpus.

    The name is the path from the named directory on, so it does not depend on the machine. Links are followed. Hidden
    files in a directory are left out. A file that is named twice is there once: or a part of it could be held out, and
    trained on as well.

    Raises:
        UserError: a path does not exist, or is a device or a pipe, which cannot be read twice; or a directory cannot
            be read.
    """
    seen = set(named.without)
    for path, name in _all(named, pattern):
        if (real := path.resolve()) not in seen:
            seen.add(real)
            yield path, name


def _all(named: Named, pattern: str) -> Iterator[tuple[Path, str]]:
    for given in map(Path, named.paths):
        if given.is_dir():
            for path in sorted(_inside(given, named)):
                if path.match(pattern) and path.is_file():
                    yield path, path.relative_to(given).as_posix()
        elif not given.exists():
            raise UserError(f"{named.setting}: there is no file or directory {given}")
        elif not given.is_file():
            raise UserError(f"{named.setting} must name files or directories, but {given} is a device or a pipe")
        else:
            yield given, given.name


def _inside(directory: Path, named: Named) -> Iterator[Path]:
    """All files in a directory and below it that are not hidden. Links are followed, to each directory once, and not
    to those in which this one is. What runs have written below it is no text.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{named.setting}: cannot read {error.filename}: {error.strerror}") from error

    here = directory.resolve()
    seen = {here, *here.parents, *named.own}
    for folder, below, files in os.walk(directory, followlinks=True, onerror=refuse):
        names = sorted(name for name in below if not name.startswith("."))
        below.clear()  # os.walk goes on with what is left in it
        for name in names:
            if (real := Path(folder, name).resolve()) not in seen and not (named.own and _of_a_run(real)):
                seen.add(real)
                below.append(name)
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _of_a_run(folder: Path) -> bool:
    """Whether a folder is the directory of a run, or holds the tokens that runs keep."""
    return folder.name == CACHE or ((folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir())
