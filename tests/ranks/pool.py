"""Worker processes, one per rank, that run functions of the tests on any number of ranks.

Starting a process and importing torch takes seconds, an empty call milliseconds: the workers are started once and
serve every test.
"""

import faulthandler
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

MAX_WORLD = 8

# How long ranks may go on after another one raised: they mostly wait for it in a collective, and will forever.
_GRACE = 10.0
_START_TIMEOUT = 120.0


@dataclass(frozen=True)
class Failure:
    """What a rank raised."""

    type: str  # name of the exception's class
    message: str
    traceback: str


class RankError(Exception):
    """A call did not return on all ranks.

    Attributes:
        failures: by rank, what was raised.
        hung: the ranks that had not answered when time was up.
        died: the ranks whose process ended.
    """

    def __init__(
        self, failures: dict[int, Failure], hung: Sequence[int], died: Sequence[int], last_words: dict[int, str]
    ) -> None:
        self.failures, self.hung, self.died = failures, tuple(hung), tuple(died)
        lines = [f"rank {rank} raised {f.type}: {f.message}" for rank, f in failures.items()]
        lines += [f"rank {rank} hung" for rank in self.hung] + [f"rank {rank} died" for rank in self.died]
        # Ranks mostly fail alike: one traceback each for those that differ.
        different = {(f.type, f.message): (rank, f) for rank, f in reversed(failures.items())}
        lines += [f"\nOn rank {rank}:\n{f.traceback}" for rank, f in reversed(different.values())]
        lines += [f"\nRank {rank} said:\n{words}" for rank, words in last_words.items() if words]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection


class Pool:
    """Up to 8 worker processes; worker k is rank k of every call."""

    def __init__(self) -> None:
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

        Args:
            world: number of ranks; gloo's default process group has this size.
            function: of a module that the workers can import.
            args: the same for all ranks, pickled.
            timeout: in seconds, for the call without starting processes.

        Raises:
            RankError: if a rank raised, died or took too long. The pool remains usable.
        """
        assert 1 <= world <= MAX_WORLD
        ranks = range(world)
        with self._all_or_none(ranks):
            self._start(rank for rank in ranks if rank not in self._workers)
            if world != self._world:
                self._world, self._generation = world, self._generation + 1
            store = os.path.join(self._folder.name, str(self._generation))
            task = pickle.dumps((world, store, function, args))
            for rank in ranks:
                self._workers[rank].pipe.send_bytes(task)
            results, failures, died = self._collect(ranks, timeout)
            hung = [rank for rank in ranks if rank not in {*results, *failures, *died}]
            last_words = self._last_words(hung, died)
        if hung or died:
            self._stop(ranks)
        if failures or hung or died:
            self._world = 0  # ranks may have left collectives unmatched: the next call starts with a new group
            raise RankError(dict(sorted(failures.items())), hung, died, last_words)
        return [results[rank] for rank in ranks]

    def _collect(self, ranks: Sequence[int], timeout: float) -> tuple[dict[int, Any], dict[int, Failure], list[int]]:
        """Return results, failures and the dead among these ranks; the others have not answered in time."""
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        died: list[int] = []
        waiting = {self._workers[rank].pipe: rank for rank in ranks}
        deadline = time.monotonic() + timeout
        while waiting and (ready := connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    answer = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    died.append(rank)
                else:
                    (failures if isinstance(answer, Failure) else results)[rank] = answer
            if failures or died:
                deadline = min(deadline, time.monotonic() + _GRACE)
        return results, failures, died

    def _last_words(self, hung: Sequence[int], died: Sequence[int]) -> dict[int, str]:
        """Return what ranks wrote to stderr before they died, such as gloo's errors, or where they hang."""
        for rank in hung:
            pid = self._workers[rank].process.pid
            assert pid is not None
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        if hung:
            time.sleep(0.5)
        return {rank: self._stderr(rank).read_text(errors="replace")[-3000:] for rank in (*hung, *died)}

    def _stderr(self, rank: int) -> Path:
        return Path(self._folder.name, f"stderr-{rank}")

    def _start(self, ranks: Iterator[int]) -> None:
        context = get_context("spawn")
        started = {}
        for rank in ranks:
            pipe, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, theirs, self._stderr(rank)), name=f"rank {rank}", daemon=True
            )
            self._workers[rank] = started[rank] = _Worker(process, pipe)
            process.start()
            theirs.close()  # so that the pipe ends with its worker
        for rank, worker in started.items():  # they import torch at the same time
            assert worker.pipe.poll(_START_TIMEOUT), f"worker {rank} did not start"
            worker.pipe.recv_bytes()

    def _stop(self, ranks: Sequence[int]) -> None:
        """Kill workers, which hold nothing of value and may be stuck in a collective."""
        stopped = [self._workers.pop(rank) for rank in ranks if rank in self._workers]
        for worker in stopped:
            if worker.process.pid is not None:
                worker.process.kill()
        for worker in stopped:
            if worker.process.pid is not None:
                worker.process.join()
                worker.process.close()
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


def _serve(rank: int, pipe: Connection, stderr: Path) -> None:
    """Answer calls until the pool is gone."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), sys.__stderr__.fileno())
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; what it means, the pool decides
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # without a look-up of the host's name
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send_bytes(b"ready")
    joined = ""
    while True:
        try:
            task = pipe.recv_bytes()
        except EOFError:  # the pool's process has ended
            return
        try:
            world, store, function, args = pickle.loads(task)
            if store != joined:
                joined = ""
                _leave()
                _join(rank, world, store)
                joined = store
            torch.manual_seed(1000 + rank)  # different on purpose: no result may depend on it
            # Plain pickle copies tensors; multiprocessing's own would pass them as open files of shared memory.
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # as in the main process
                answer = pickle.dumps(function(*args))
        except BaseException as error:
            answer = pickle.dumps(Failure(type(error).__name__, str(error), traceback.format_exc()))
        pipe.send_bytes(answer)


def _end_with_parent() -> None:
    """End this process with the one that started it, which may have been killed, even in a collective."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _join(rank: int, world: int, store: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)


def _leave() -> None:
    """Leave the process group, if there is one, and forget whatever knows it.

    Equal DeviceMeshes of two process groups compare equal, and torch reuses the names of groups: a cached sharding
    or mesh of the old world would be taken for one of the new and use groups that are gone, or are others now.
    """
    if not dist.is_initialized():
        return
    dist.destroy_process_group()
    if hasattr(torch._C, "_clear_DTensor_sharding_propagator_cache"):
        torch._C._clear_DTensor_sharding_propagator_cache()
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith(("torch.distributed", "tests.")):
            _clear_caches(module)


def _clear_caches(module: ModuleType) -> None:
    for holder in (module, *(value for value in vars(module).values() if issubclass(type(value), type))):
        for value in vars(holder).values():
            if hasattr(type(value), "cache_clear"):  # a function under functools.cache or lru_cache
                value.cache_clear()
