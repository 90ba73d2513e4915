"""Whether anything has been written to weights or state other than by the verbs that know the gate."""

from collections.abc import Callable, Iterable

from torch import Tensor


class Seal:
    """Remembers how often torch has written to some tensors. Torch counts that for each storage.

    What is written within `with seal:` may be written.

    Args:
        tensors: returns them, as they are now.
        rule: the name of the rule that works on them, for the error.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], rule: str) -> None:
        self._tensors, self._rule = tensors, rule
        self._count = self._count_now()

    def __enter__(self) -> None:
        self.check()

    def __exit__(self, *_: object) -> None:
        self.renew()

    def renew(self) -> None:
        """Take what has been written so far for what may have been written."""
        self._count = self._count_now()

    def check(self) -> None:
        """Raise a RuntimeError if somebody has written since the last time."""
        if self._count != self._count_now():
            raise RuntimeError(
                f"the rule {self._rule!r} has written to weights or state without the verbs of its batch, so that a "
                "step that is to be left out would change them; use batch.descend(...) and the verbs of "
                "batch.kept(...)"
            )

    def _count_now(self) -> int:
        # Tensors made in inference mode are not counted.
        return sum(tensor._version for tensor in self._tensors() if not tensor.is_inference())
