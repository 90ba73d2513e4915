"""Documents from a Hugging Face data set."""

from collections.abc import Iterator

from orthon.train.errors import UserError
from orthon.train.text.byte_corpus import Document


def hf_documents(name: str, subset: str | None, split: str, text_column: str) -> Iterator[Document]:
    """The rows of a data set, which is downloaded on first use and held in memory.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be loaded, or it has no such text column.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.source hf needs an extra: pip install 'orthon[datasets]'") from error
    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # network, hub and format errors of many kinds
        raise UserError(f"cannot load the data set {name}: {' '.join(str(error).split())}") from error
    if text_column not in rows.column_names:
        raise UserError(f"data.text_column must be one of {', '.join(rows.column_names)} but is {text_column!r}")
    for number, text in enumerate(rows[text_column]):
        if not isinstance(text, str):
            raise UserError(f"data.text_column {text_column!r} of {name} must hold text, but row {number} does not")
        yield f"row {number}", text.encode()
