"""The error of a file that is not read."""


class RefusedError(ValueError):
    """A file is damaged, or says what none of its kind does. The message is to follow "it cannot be read: "."""


class DamagedError(RefusedError):
    """A file is not even of the kind that it should be, or has lost some of its bytes."""
