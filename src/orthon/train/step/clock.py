"""Seconds of training, without validation, checkpoints and reports."""

import time

import torch


class StepClock:
    """Adds up the time in which it runs.

    Args:
        device: A GPU is waited for whenever the clock is read, so that queued work counts where it belongs.
        seconds: Time to begin with, of a run that is continued.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self.device = device
        self.seconds = seconds
        self._since: float | None = None

    def start(self) -> None:
        """Run, if it does not yet."""
        if self._since is None:
            self._since = self.now()

    def stop(self) -> None:
        """Stand still and bring `seconds` up to date."""
        if self._since is not None:
            self.seconds += self.now() - self._since
            self._since = None

    def now(self) -> float:
        """The time at which the device has done all of its work, in seconds from an arbitrary point."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
