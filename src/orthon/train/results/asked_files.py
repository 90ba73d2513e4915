"""Files that somebody asks for on the command line: what is there under their names."""

from pathlib import Path

from orthon.train.errors import UserError


def refuse_unwritable(*paths: Path | None) -> None:
    """Refuse names under which no result can be written, before the work for it begins.

    A result replaces a file of its name, so that the old one or the new one is whole. It must not replace a link, a
    pipe or a device in that way.

    Args:
        paths: that are asked for; None where none is.

    Raises:
        UserError: there is no such folder, or something else has the name, or two results have the same one.
    """
    seen = set()
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise UserError(f"{path} cannot be written: it is a folder")
        if path.is_symlink():
            raise UserError(f"{path} cannot be written: it is a link; name the file to which it leads")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be written: it is a pipe or a device; name a file")
        if (real := path.resolve()) in seen:
            raise UserError(f"{path} cannot be written: another result has that name")
        seen.add(real)
