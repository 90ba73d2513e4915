"""What tests share.

Without a GPU, Triton's kernels run in its interpreter, which it must know before its first import.
"""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from orthon.algorithms.state import Entry

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def wide_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the rows' second moments in float64, which are float32 in the package: they end at 1e-7."""
    for rule in ("normuon", "dion3"):
        entries = {"row_moment": Entry(side=0, width=1, dtype=torch.float64)}
        monkeypatch.setattr(f"orthon.algorithms.{rule}.row_moments", lambda e=entries: e)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where the shell has it ignored, as in a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
