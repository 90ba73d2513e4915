"""A worker process of the pool: one rank, which answers calls until the pool is gone."""

import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import ModuleType

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from orthon.testing.failures import Failure

# Set in the environment of workers: what they import may check rules itself, and must not start workers of its own.
MARK = "ORTHON_TESTING_WORKER"

# How often a worker looks whether the process that started it is still there, in seconds.
_LOOK_EVERY = 0.5


def serve(rank: int, descriptor: int) -> None:
    """Answer calls that come through a socket.

    Args:
        rank: of this process in every call.
        descriptor: of the open socket.
    """
    os.environ[MARK] = str(rank)
    pipe, parent = Connection(descriptor), os.getppid()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; what it means, the pool decides
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # without a look-up of the host's name
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe.send_bytes(b"ready")
    joined = ""
    while True:
        try:
            task = pipe.recv_bytes()
        except (EOFError, ConnectionResetError):  # the pool's process has ended
            return
        try:
            world, store, forget, filters, function, args = pickle.loads(task)
            if store != joined:
                joined = ""
                _leave(forget)
                dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
                joined = store
            torch.manual_seed(1000 + rank)  # different on purpose: no result may depend on it
            # Plain pickle copies tensors; multiprocessing's own would pass them as open files of shared memory.
            with _filtered_warnings(filters):
                answer = pickle.dumps((function(*args), len(dist.distributed_c10d._world.pg_map)))
        except BaseException as error:
            answer = pickle.dumps((Failure(type(error).__name__, str(error), traceback.format_exc()), 0))
        pipe.send_bytes(answer)


def _end_with(parent: int) -> None:
    """End this process after the one that started it, which may have been killed, even in a collective."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


@contextmanager
def _filtered_warnings(filters: Sequence[tuple[str, str, type[Warning], str, int]]) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for action, message, category, module, line in reversed(filters):
            warnings.filterwarnings(action, message, category, module, line)  # type: ignore[arg-type]
        yield


def _leave(forget: Sequence[str]) -> None:
    """Leave the process group, if there is one, and forget whatever knows it.

    Equal DeviceMeshes of two process groups compare equal, and torch reuses the names of groups: a cached sharding
    or mesh of the old world would be taken for one of the new and use groups that are gone, or are others now.
    """
    if not dist.is_initialized():
        return
    dist.destroy_process_group()
    if hasattr(torch._C, "_clear_DTensor_sharding_propagator_cache"):
        torch._C._clear_DTensor_sharding_propagator_cache()
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()  # type: ignore[no-untyped-call]
    packages = ("torch.distributed", "orthon.testing.layouts", *forget)
    for name, module in list(sys.modules.items()):
        if any(name == package or name.startswith(f"{package}.") for package in packages):
            _clear_caches(module)


def _clear_caches(module: ModuleType) -> None:
    for holder in (module, *(value for value in vars(module).values() if issubclass(type(value), type))):
        for value in vars(holder).values():
            if hasattr(type(value), "cache_clear"):  # a function under functools.cache or lru_cache
                value.cache_clear()
