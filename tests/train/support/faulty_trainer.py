"""The trainer with one fault at one moment: python faulty_trainer.py FAULT STEP RANK PLACE WORDS...

The fault happens to one rank, when it begins a step or is to write its part of the step's checkpoint. PLACE is a file
that remembers that it has happened, so that it does not happen again after a restart; or a directory on a small disk.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthon.train.checkpoints.writer import CheckpointWriter
from orthon.train.commands.main import main
from orthon.train.run.run import Run
from orthon.train.step.training import Training

FAULT, STEP, RANK, PLACE = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])


def kill(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_writing(writer: CheckpointWriter) -> None:
    writer.part.mkdir(parents=True, exist_ok=True)
    (writer.part / f"__{RANK}_0.distcp").write_bytes(b"a part of a file")
    kill(writer)


def interrupt(*numbers: signal.Signals) -> Callable[[object], None]:
    """Signals while a checkpoint is being written, which takes its time."""

    def act(_: object) -> None:
        for number in numbers:
            time.sleep(0.5)
            os.kill(os.getpid(), number)
        time.sleep(0.5)

    return act


def fill(_: object) -> None:
    """Leave no room on the disk."""
    with (PLACE / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def empty(_: object) -> None:
    (PLACE / "ballast").unlink(missing_ok=True)


def limit(size: int) -> Callable[[object], None]:
    """Let no file become larger, in bytes; Python ignores the signal that comes with the error."""
    return lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# What happens at the step, and what at later ones.
Act = Callable[[Any], None]
IN_STEP: dict[str, Act] = {"kill in step": kill}
IN_SAVE: dict[str, Act] = {
    "kill in save": kill_writing,
    "SIGTERM in save": interrupt(signal.SIGTERM),
    "SIGINT in save": interrupt(signal.SIGINT),
    "SIGINT twice in save": interrupt(signal.SIGINT, signal.SIGINT),
}
BEFORE_SAVE: dict[str, tuple[Act, Act]] = {
    "full disk": (fill, empty),
    "limited files": (limit(10_000), limit(resource.RLIM_INFINITY)),
}


# What happens before one step, and what 30 steps later. Fewer lines may fit into what is left of a block of the disk.
FOR_30_STEPS: dict[str, tuple[Act, Act]] = {
    "full disk for 30 steps": (fill, empty),
    "limited files for 30 steps": (limit(200), limit(resource.RLIM_INFINITY)),
}
# What happens when all steps are done.
AT_END: dict[str, Act] = {"full disk at end": fill, "limited files at end": limit(0)}


def before(owner: type, method: str, act: Act) -> None:
    """Let something happen before each call of a method."""
    original = getattr(owner, method)

    def wrapped(self: object, *args: object) -> object:
        act(self)
        return original(self, *args)

    setattr(owner, method, wrapped)


def once(step: int, act: Act, sufferer: object) -> None:
    if step == STEP and os.environ.get("RANK", "0") == RANK and not PLACE.exists():
        PLACE.touch()
        act(sufferer)


def before_save(writer: CheckpointWriter) -> None:
    at_step, later = BEFORE_SAVE[FAULT]
    if os.environ.get("RANK", "0") == RANK and writer.manifest.step >= STEP:
        (at_step if writer.manifest.step == STEP else later)(writer)


def for_30_steps(training: Training) -> None:
    begin, end = FOR_30_STEPS[FAULT]
    if training.step in (STEP, STEP + 30):
        (begin if training.step == STEP else end)(training)


if FAULT in FOR_30_STEPS:
    before(Training, "advance", for_30_steps)
elif FAULT in AT_END:
    before(Run, "_sample", AT_END[FAULT])
elif FAULT in IN_STEP:
    before(Training, "advance", lambda training: once(training.step, IN_STEP[FAULT], training))
elif FAULT in IN_SAVE:
    before(CheckpointWriter, "write_data", lambda writer: once(writer.manifest.step, IN_SAVE[FAULT], writer))
else:
    before(CheckpointWriter, "stage", before_save)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
sys.exit(main(sys.argv[5:]))
