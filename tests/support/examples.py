"""The programs in examples/, run as a person would run them."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
MOST_LINES = 60
MOST_SECONDS = 60.0  # of work of all its processes together

# A line such as "vision transformer, step 20: loss 0.353", of which what comes before step or epoch is the name.
_LOSS = re.compile(r"^(?:(.*), )?(?:step|epoch) \d+: loss (\d+\.\d+)$", re.M)


@dataclass(frozen=True)
class Ran:
    """What a run of an example was like.

    Attributes:
        printed: what it wrote.
        losses: what it printed of them in order, by what was trained; "" if that has no name.
        seconds: how long it worked, all its processes together. Others on the machine do not lengthen it much.
    """

    printed: str
    losses: dict[str, list[float]]
    seconds: float


def run(path: Path) -> Ran:
    """Run an example as its docstring says, with one thread for each process, and without a network.

    Raises:
        AssertionError: if it does not end with exit code 0, or names no command.
    """
    command = re.search(rf"^Run: (python|torchrun (.+)) examples/{path.name}$", path.read_text(encoding="utf-8"), re.M)
    assert command, f"{path.name} does not tell how it is run"
    launcher = ["-m", "torch.distributed.run", *command[2].split()] if command[2] else []
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = _worked()
    done = subprocess.run(
        [sys.executable, *launcher, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{path.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-5000:]}"
    losses: dict[str, list[float]] = {}
    for name, loss in _LOSS.findall(done.stdout):
        losses.setdefault(name, []).append(float(loss))
    return Ran(done.stdout, losses, _worked() - before)


def _worked() -> float:
    """Return the seconds that ended processes of this one have worked."""
    times = os.times()
    return times.children_user + times.children_system


def assert_learns(ran: Ran) -> None:
    """Hold an example to what a reader should see: it trains, and each loss falls."""
    assert ran.losses, f"no loss is printed:\n{ran.printed}"
    for name, losses in ran.losses.items():
        assert len(losses) > 2, f"{name}: {losses}"
        assert losses[-1] < losses[0], f"{name}: {losses}"
