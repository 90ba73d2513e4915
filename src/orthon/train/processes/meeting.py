"""How the processes of one start find each other, and not the traces of an earlier start."""

import json
import time
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store

FIRST = "orthon/first"
PAUSE = 0.02  # seconds


def meet(store: Store, rank: int, world: int) -> Store:
    """Return a part of the store that only these processes use. Each of them calls it.

    When torchrun restarts the processes, it keeps its store, with the addresses of the old processes in it. The number
    of restarts does not help, as it may differ between machines. So rank 0 makes up a name and publishes it. Each
    other rank makes up a name, too, and writes it under that of rank 0. Rank 0 answers with all these names. A rank
    that finds its own name in the answer knows that the answer is for this start.

    Args:
        store: shared by all processes.
        rank: rank of this process.
        world: number of processes.
    """
    own = uuid4().hex
    if rank == 0:
        store.set(FIRST, own)
        names = [store.get(f"orthon/{own}/{other}").decode() for other in range(1, world)]
        store.set(f"orthon/{own}", json.dumps(names))
        return PrefixStore(own, store)
    while True:
        first = store.get(FIRST).decode()
        store.set(f"orthon/{first}/{rank}", own)
        if store.check([f"orthon/{first}"]) and json.loads(store.get(f"orthon/{first}"))[rank - 1] == own:
            return PrefixStore(first, store)
        time.sleep(PAUSE)
