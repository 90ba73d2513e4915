"""Lines of JSON as frozen records, with every value of the kind that the record says."""

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

STRICT = ConfigDict(strict=True, extra="forbid")

Count = Annotated[int, Field(ge=0, lt=2**62)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]  # to 30,000 years

R = TypeVar("R")


def record_of(kind: type[R], text: bytes) -> R:
    """The record that a text in JSON describes.

    Args:
        kind: A dataclass whose `__pydantic_config__` is `STRICT`.
        text: In UTF-8.

    Raises:
        ValueError: It is no JSON, or lacks values, or has others, or has values of another kind.
    """
    record: R = _adapter(kind).validate_json(text)  # type: ignore[arg-type]  # classes are hashable
    return record


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # takes a thousand times as long as a line
