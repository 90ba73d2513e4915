"""Numbers as people write them: 1e3 is a whole number, and 1/8 is a number."""

import re
from typing import Any

_FRACTION = re.compile(r"([-+]?\d{1,15}(?:\.\d{0,15})?)/(\d{1,15}(?:\.\d{0,15})?)")
_DIGITS = re.compile(r"\d{1,15}", re.ASCII)
_WITH_EXPONENT = re.compile(r"[-+]?\d{1,15}(?:\.\d{0,15})?[eE]\+?\d{1,3}")


def fraction(value: Any) -> Any:
    """Return the number that a word such as 1/8 means; every other value as it is, for pydantic to judge."""
    if isinstance(value, str) and (written := _FRACTION.fullmatch(value.strip())):
        above, below = float(written[1]), float(written[2])
        return above / below if below else value
    return value


def of_word(value: Any) -> Any:
    """Return the whole number that a word of digits is: pydantic compares no words with the numbers of a choice."""
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value.strip()) else value


def whole(value: Any) -> Any:
    """Return the whole number that 1e3, 1000.0 or 8/2 means; every other value as it is, for pydantic to judge."""
    number = fraction(value)
    if isinstance(number, str) and _WITH_EXPONENT.fullmatch(number.strip()):
        number = float(number)
    return int(number) if isinstance(number, float) and number.is_integer() else value
