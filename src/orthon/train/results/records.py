"""Lines of JSON as frozen records, with every value of the kind that the record says."""

from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter

STRICT = ConfigDict(strict=True, extra="forbid")

R = TypeVar("R")


def record_of(kind: type[R], text: bytes) -> R:
    """The record that a text in JSON describes.

    Args:
        kind: A dataclass whose `__pydantic_config__` is `STRICT`.
        text: In UTF-8.

    Raises:
        ValueError: It is no JSON, or lacks values, or has others, or has values of another kind.
    """
    return TypeAdapter(kind).validate_json(text)
