"""Documents that are rows: one text in each, under a name that all rows share."""

from collections.abc import Iterator
from typing import Any

from orthon.step.words import some
from orthon.train.errors import UserError
from orthon.train.text.passages import Passage, in_blocks, passages


def row_passages(name: str, text: Any, where: str, column: str, *, read: int) -> Iterator[Passage]:
    """The passages of one row.

    Args:
        name: of the document.
        text: what the row holds in the column.
        where: the row, for errors.
        column: its name.
        read: how much of the source's total the row is.

    Raises:
        UserError: it is not text.
    """
    if not isinstance(text, str):
        raise UserError(f"data.text_column {column!r} of {where} does not")
    # JSON can hold halves of characters, which no encoding knows.
    return passages(name, in_blocks(text.encode(errors="replace")), read=read)


def require_column(column: str, columns: Any, where: str = "") -> None:
    """Refuse a column that is not there.

    Raises:
        UserError: it names those that are.
    """
    names = [str(name) for name in columns]
    if column not in names:
        shown = some(names, most=20, said=str) or "its columns"
        raise UserError(f"{where}data.text_column must be one of {shown} but is {column!r}")
