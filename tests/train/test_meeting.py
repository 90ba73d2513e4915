"""Processes that start again find each other, and not what the start before has left in the store."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from orthon.train.processes.meeting import meet


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_meeting_again(world: int, first: bool) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=10))
    for start in range(3):
        order = range(world) if first else range(world - 1, -1, -1)
        with ThreadPoolExecutor(world) as pool:
            stores = list(pool.map(lambda rank: meet(store, rank, world), order))
        for number, own in enumerate(stores):
            assert not own.check(["address"]) or number > 0
            own.set("address", str(start))
            assert {other.get("address") for other in stores} == {str(start).encode()}


def test_the_others_do_not_go_on_alone() -> None:
    """They wait for the first one of their own start, though there is the answer of an earlier one."""
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: meet(store, rank, 2), range(2)))
        second = pool.submit(meet, store, 1, 2)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        first = meet(store, 0, 2)
        first.set("here", "1")
        assert second.result(timeout=10).get("here") == b"1"


@pytest.mark.parametrize(
    ("rank", "port", "message"),
    [
        ("5", "29500", "torchrun did not start this process: RANK is 5"),
        ("1", "abc", "torchrun did not start this process: invalid literal for int() with base 10: 'abc'"),
    ],
)
def test_a_process_of_odd_variables_says_so(rank: str, port: str, message: str) -> None:
    """Whatever its rank: the others may not be there."""
    variables = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [sys.executable, "-m", "orthon", "train"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, **variables})
    assert (ended.returncode, ended.stderr) == (2, f"orthon: WORLD_SIZE is 2, but {message}\n")
