"""A clock of the training time, which stands still during validation, checkpoints and reports."""

import time

import torch


class StepClock:
    """Adds up the time during which it runs.

    Attributes:
        seconds: the time so far. Where a run is continued, it is set to the time until then.

    Args:
        device: if it is a GPU, each reading of the clock waits for it, so that queued work counts where it belongs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start the clock, unless it runs already."""
        if self._since is None:
            self._since = self.now()

    def stop(self) -> None:
        """Stop the clock, and bring `seconds` up to date."""
        if self._since is not None:
            self.seconds += self.now() - self._since
            self._since = None

    def now(self) -> float:
        """Return the time in seconds, from an arbitrary start, when the device has done all of its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
