"""Worker processes, one per rank, that run functions on any number of ranks.

Starting a process and importing torch takes seconds, an empty call milliseconds. So the workers are started once and
serve every call.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orthon.testing.failures import Failure, RankError

MAX_WORLD = 8

# How long ranks may go on after another one raised: they mostly wait for it in a collective, and will forever.
_GRACE = 10.0
_START_TIMEOUT = 120.0

# How many process groups workers may keep for the next call, those of its meshes. Each has a thread of gloo that wakes
# a hundred times a second. To make the groups anew takes longer than a call.
_MOST_GROUPS = 16

# What a worker runs. It must not be started by multiprocessing, which would run the caller's script again.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from orthon.testing.worker import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection


class Pool:
    """Up to 8 worker processes; worker k is rank k of every call. Use it in a `with` statement.

    Args:
        forget: names of packages whose cached functions (functools.cache) may hold what belongs to a process group,
            such as a DeviceMesh. These caches are cleared in the workers when they leave their process groups: when
            the number of ranks changes, and when there are many groups.
    """

    def __init__(self, *, forget: Sequence[str] = ()) -> None:
        self._forget = tuple(forget)
        self._workers: dict[int, _Worker] = {}
        self._world = 0  # size of the process group that the workers have, or 0
        self._generation = 0  # number of that group: every one has its own store
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(list(self._workers))
        self._folder.cleanup()

    def run(self, world: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
        """Return what `function(*args)` returns on each of `world` ranks.

        A rank has gloo's default process group and one thread, and treats warnings as the caller does.

        Args:
            world: the number of ranks, 1 to 8.
            function: of a module that the workers can import.
            args: the same for all ranks, pickled.
            timeout: in seconds, for the call without starting processes.

        Raises:
            RankError: if a rank raised, died or took too long. The pool remains usable.
            ValueError: for a number of ranks or a function that is not allowed.
        """
        if not 1 <= world <= MAX_WORLD:
            raise ValueError(f"Pool: world should be a number of ranks from 1 to {MAX_WORLD}, but is {world}")
        if getattr(function, "__module__", None) == "__main__":
            raise ValueError(
                f"Pool: function should be one of a module that workers can import, but {function.__name__!r} is of "
                "the script that runs"
            )
        ranks = range(world)
        with self._all_or_none(ranks):
            self._start([rank for rank in ranks if rank not in self._workers])
            if world != self._world:
                self._world, self._generation = world, self._generation + 1
            store = os.path.join(self._folder.name, str(self._generation))
            task = pickle.dumps((world, store, self._forget, _warning_filters(), function, args))
            for rank in ranks:
                self._workers[rank].pipe.send_bytes(task)
            results, failures, died, groups = self._collect(ranks, timeout)
            hung = [rank for rank in ranks if rank not in {*results, *failures, *died}]
            last_words = self._last_words(hung, died)
        if hung or died:
            self._stop(ranks)
        if failures or hung or died:
            self._world = 0  # ranks may have left collectives unmatched: the next call starts with a new group
            raise RankError(dict(sorted(failures.items())), hung, died, last_words)
        if groups > _MOST_GROUPS:
            self._world = 0
        return [results[rank] for rank in ranks]

    def _collect(
        self, ranks: Sequence[int], timeout: float
    ) -> tuple[dict[int, Any], dict[int, Failure], list[int], int]:
        """Return results, failures and the dead among these ranks, and the most process groups that one has.

        The others have not answered in time.
        """
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        died: list[int] = []
        most = 0
        waiting = {self._workers[rank].pipe: rank for rank in ranks}
        deadline = time.monotonic() + timeout
        while waiting and (ready := connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    answer, groups = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    died.append(rank)
                else:
                    (failures if isinstance(answer, Failure) else results)[rank] = answer
                    most = max(most, groups)
            if failures or died:
                deadline = min(deadline, time.monotonic() + _GRACE)
        return results, failures, died, most

    def _last_words(self, hung: Sequence[int], died: Sequence[int]) -> dict[int, str]:
        """Return what ranks wrote to stderr before they died, such as gloo's errors, or where they hang."""
        for rank in hung:
            with suppress(ProcessLookupError):
                self._workers[rank].process.send_signal(signal.SIGUSR1)
        if hung:
            time.sleep(0.5)
        return {rank: self._stderr(rank).read_text(errors="replace")[-3000:] for rank in (*hung, *died)}

    def _stderr(self, rank: int) -> Path:
        return Path(self._folder.name, f"stderr-{rank}")

    def _start(self, ranks: Sequence[int]) -> None:
        """Start these workers; they import torch at the same time."""
        for rank in ranks:
            ours, theirs = socket.socketpair()
            with theirs, self._stderr(rank).open("wb") as stderr:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        _PROGRAM,
                        str(rank),
                        str(theirs.fileno()),
                        json.dumps(list(map(str, sys.path))),
                    ],
                    stdin=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=[theirs.fileno()],
                )
            self._workers[rank] = _Worker(process, Connection(ours.detach()))
        for rank in ranks:
            pipe = self._workers[rank].pipe
            try:
                started = pipe.poll(_START_TIMEOUT) and pipe.recv_bytes() == b"ready"
            except (EOFError, ConnectionResetError):
                started = False
            if not started:
                words = self._stderr(rank).read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the worker process of rank {rank} did not start:\n{words}")

    def _stop(self, ranks: Sequence[int]) -> None:
        """Kill workers, which hold nothing of value and may be stuck in a collective."""
        stopped = [self._workers.pop(rank) for rank in ranks if rank in self._workers]
        for worker in stopped:
            worker.process.kill()
        for worker in stopped:
            worker.process.wait()
            worker.pipe.close()
        self._world = 0

    @contextmanager
    def _all_or_none(self, ranks: Sequence[int]) -> Iterator[None]:
        """Stop the workers where something interrupts a call, such as Ctrl-C: they would answer the next one."""
        try:
            yield
        except BaseException:
            self._stop(ranks)
            raise


def _warning_filters() -> list[tuple[str, str, type[Warning], str, int]]:
    """Return the caller's filters in the order of their force, as `warnings.filterwarnings` takes them."""
    return [
        (action, _pattern(message), category, _pattern(module), line)
        for action, message, category, module, line in warnings.filters
        if isinstance(category, type) and category.__module__ != "__main__"  # which workers could not import
    ]


def _pattern(expression: Any) -> str:
    """Return the text of a regular expression; None is one that everything matches, and some filters hold a text."""
    return getattr(expression, "pattern", expression) or ""
