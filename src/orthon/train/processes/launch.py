"""The processes of one command, as torchrun tells each of them in its environment."""

import contextlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

from orthon.train.errors import UserError

LAST_WORD = "orthon/last word"
GLOO = "gloo/transport/"  # the source of gloo's errors about connections, which it names in them
PATIENCE = timedelta(seconds=10)


def processes() -> int:
    """Number of processes that carry out this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process; 0 is the one that speaks and writes."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def run_together(command: Callable[[], int]) -> NoReturn:
    """Carry out a command in all processes, and end them; only the first one's output is seen.

    Products on a CPU and small agreements between the processes go by gloo, the rest by NCCL.

    Args:
        command: Returns the exit code.

    If one of the processes ends before its command has, the others say so and end with 1, for torchrun to start all
    of them again.

    Raises:
        UserError: The environment lacks something that torchrun sets.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from orthon.train.processes.meeting import meet

    try:
        store, rank, world = next(rendezvous("env://"))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE is {processes()}, but torchrun did not start this process: {error}") from error
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
    if code and rank:
        # torchrun ends all processes as soon as one fails: the first one is to say why before that.
        with contextlib.suppress(RuntimeError):
            store.wait([LAST_WORD], PATIENCE)
    elif code:
        store.set(LAST_WORD, "said")
    dist.destroy_process_group()
    _end(code)


def of_lost_process(error: RuntimeError) -> bool:
    """Whether an error means that another process has ended or cannot be reached."""
    import torch.distributed as dist

    return isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError) or (
        type(error) is RuntimeError and GLOO in str(error)
    )


def _end_after_another(rank: int, error: RuntimeError) -> NoReturn:
    """Say it in a line, on each rank as the first may be the one that is gone, and wait for nobody."""
    reason = " ".join(str(error).split())
    print(f"orthon: rank {rank}: another process of the run has ended: {reason}", file=sys.stderr)
    _end(1)


def _end(code: int) -> NoReturn:
    # All is written. Threads of a backend that are still there when Python ends its own may abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
