"""What a computation costs, noted while it runs: on meta without numbers, or for real."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from orthon.machines import Machine
from orthon.plan.operations import NOTHING, counted
from orthon.plan.phases import phase
from orthon.plan.tally import Tally


class Recorder(TorchDispatchMode):
    """Notes what the operations of torch inside this context cost, by phase.

    Where meta tensors stand for a GPU (`meta_stands_for`), they are counted as its operations.

    Args:
        machine: whose seconds are noted; None for no seconds.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._machine = machine
        self._tallies: dict[str, Tally] = {}

    def taken(self) -> dict[str, Tally]:
        """Return what has been noted since the last call, by phase."""
        tallies, self._tallies = self._tallies, {}
        return tallies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation, and note what it costs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = counted(func, args, kwargs, result)
        if operation != NOTHING:
            name = phase()
            tally = self._tallies.get(name)
            if tally is None:
                tally = self._tallies[name] = Tally()
            tally.note(operation, self._machine)
        return result
