"""JSON as frozen records, with every value of the kind that the record says."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

from orthon.saving.files import read_plain

STRICT = ConfigDict(strict=True, extra="forbid")
LARGEST = 2**16  # bytes of a file that holds one record

Count = Annotated[int, Field(ge=0, lt=2**62)]
Positive = Annotated[int, Field(gt=0, lt=2**62)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]  # to 30,000 years

R = TypeVar("R")


def record_of(kind: type[R], text: bytes) -> R:
    """Return the record that a text in JSON describes.

    Args:
        kind: a dataclass whose `__pydantic_config__` is `STRICT`.
        text: in UTF-8.

    Raises:
        ValueError: it is no JSON, or lacks values, or has others, or has values of another kind.
    """
    record: R = _adapter(kind).validate_json(text)  # type: ignore[arg-type]  # classes are hashable
    return record


def read_record(kind: type[R], path: Path) -> R:
    """Return the record that a file holds, and nothing else.

    Args:
        kind: as for `record_of`.
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link or no file, or too large, or its text is no such record.
    """
    return record_of(kind, read_plain(path, limit=LARGEST))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # takes a thousand times as long as a line
