"""How the processes of one start find each other, and not what an earlier start has left behind."""

import json
import time
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store

FIRST = "orthon/first"
PAUSE = 0.02  # seconds


def meet(store: Store, rank: int, world: int) -> Store:
    """A part of the store that these processes have for themselves; each of them calls it.

    torchrun keeps its store when it starts the processes again, with the addresses in it at which their predecessors
    listened, and it does not tell all machines the same number of restarts. So the first process makes up a name;
    the others write theirs under it, and know by finding it in the first one's answer that the answer is new.

    Args:
        store: That all share.
        rank: Of this process.
        world: Number of processes.
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
