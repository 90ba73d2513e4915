"""The processes of one command, as torchrun tells each of them in its environment."""

import contextlib
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

from orthon.train.errors import UserError

LAST_WORD = "orthon/last word"
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

    Raises:
        UserError: The environment lacks something that torchrun sets.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://"))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE is {processes()}, but torchrun did not start this process: {error}") from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    with contextlib.ExitStack() as stack:
        if rank:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        code = command()
    if code and rank:
        # torchrun ends all processes as soon as one fails: the first one is to say why before that.
        with contextlib.suppress(RuntimeError):
            store.wait([LAST_WORD], PATIENCE)
    elif code:
        store.set(LAST_WORD, "said")
    dist.destroy_process_group()
    # All is written. Threads of a backend that are still there when Python ends its own may abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
