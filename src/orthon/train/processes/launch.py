"""Run one command in the processes that torchrun has started. It describes them by environment variables."""

import contextlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

from orthon.train.errors import UserError

LAST_WORD = "orthon/last word"
GLOO = "gloo/transport/"  # a source folder, which gloo's errors about connections name
PATIENCE = timedelta(seconds=10)  # how long a failing rank waits for the first one to say why


def processes() -> int:
    """Return the number of processes that carry out this command."""
    return _number("WORLD_SIZE", 1)


def process_rank() -> int:
    """Return the rank of this process. Rank 0 writes the messages and the files."""
    return _number("RANK", 0) if processes() > 1 else 0


def _number(variable: str, default: int) -> int:
    """Return an environment variable as a number. What is none is not from torchrun, and tells of no processes."""
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else default


def run_together(command: Callable[[], int], say: Callable[[], None]) -> NoReturn:
    """Carry out a command in all processes, and end the processes. Only the output of rank 0 is shown.

    Tensors on a CPU and small objects are sent by gloo, tensors on a GPU by NCCL. If a process ends too early, the
    others say so and end with exit code 1. torchrun can then start all of them again.

    Args:
        command: returns the exit code.
        say: says why this process fails. It is called where rank 0 has not done so.

    Raises:
        UserError: an environment variable is missing that torchrun sets.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from orthon.train.processes.meeting import meet

    started = f"WORLD_SIZE is {processes()}, but torchrun did not start this process"
    if process_rank() >= processes():
        raise UserError(f"{started}: RANK is {process_rank()}")
    try:
        store, rank, world = next(rendezvous("env://"))
    except ValueError as error:
        raise UserError(f"{started}: {error}") from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store = meet(store, rank, world)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        with contextlib.ExitStack() as stack:
            if rank:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            code = command()
    except RuntimeError as error:
        if not of_lost_process(error):
            raise
        _end_after_another(rank, error)
    if code > 128:  # a signal: other ranks may not have got one, so there is nobody to wait for
        _end(code)
    if code and rank:
        # torchrun ends all processes as soon as one fails. Before that, rank 0 must say why.
        try:
            store.wait([LAST_WORD], PATIENCE)
        except RuntimeError:
            say()
    elif code:
        store.set(LAST_WORD, "said")
    dist.destroy_process_group()
    _end(code)


def of_lost_process(error: RuntimeError) -> bool:
    """Return whether an error means that another process has ended, or cannot be reached."""
    import torch.distributed as dist

    return isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError) or (
        type(error) is RuntimeError and GLOO in str(error)
    )


def _end_after_another(rank: int, error: RuntimeError) -> NoReturn:
    """Say so in one line, and wait for nobody. Every rank does, as rank 0 may be the one that has ended."""
    reason = " ".join(str(error).split())
    print(f"orthon: rank {rank}: another process of the run has ended: {reason}", file=sys.stderr)
    _end(1)


def _end(code: int) -> NoReturn:
    # All files are written. At a normal exit, threads of a backend that still run may abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
