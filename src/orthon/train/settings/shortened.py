"""Values in messages: never more than a line can hold, whatever the value is."""

from reprlib import Repr

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 100
_REPR.maxlong = 40
_REPR.maxlevel = 3
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 10


def shortened(value: object) -> str:
    """Return a value as Python would write it, without the middle if it is long."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
