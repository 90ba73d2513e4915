"""The worker processes themselves."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from orthon.testing import Pool, RankError

# On ranks


def scaled(x: Tensor) -> Tensor:
    return x * dist.get_rank()


def total() -> int:
    count = torch.ones((), dtype=torch.int64)
    dist.all_reduce(count)
    return int(count)


def drawn() -> Tensor:
    return torch.rand(3)


def fail(on: list[int], others: str) -> int:
    """Fail on some ranks; the others "return" or "wait" for all ranks."""
    if dist.get_rank() in on:
        raise ValueError(f"a bad value, on ranks {on}")
    return total() if others == "wait" else 0


def interrupt(pid: int) -> int:
    if dist.get_rank() == 0:
        os.kill(pid, signal.SIGINT)
    return total()


def die() -> None:
    if dist.get_rank() == 1:
        os.write(2, b"last words")  # as gloo does where ranks disagree on the size of a tensor
        os.kill(os.getpid(), signal.SIGKILL)


def threads_with_more_groups(more: int) -> int:
    """Return how many threads this process has, with so many more process groups."""
    for _ in range(more):
        dist.new_group()
    return len(os.listdir("/proc/self/task"))


def row_sums_of_a_sharded_matrix(groups_before: int) -> Tensor:
    """Use the caches of DTensor, with a mesh whose groups have other names after other groups."""
    world = dist.get_world_size()
    for _ in range(groups_before):
        dist.new_group()
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("a", "b"))
    matrix = torch.arange(32.0).reshape(8, 4)
    sharded = distribute_tensor(matrix, mesh, (Shard(0), Shard(1)))
    sums = (2 * sharded).sum(1).redistribute(placements=(Replicate(), Replicate())).to_local()
    assert mesh["b"].size() == world // 2
    return torch.stack([sums, 2 * matrix.sum(1)])


# In the main process


def test_results_come_by_rank(ranks: Pool) -> None:
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    results = ranks.run(4, scaled, x.T)
    for rank, result in enumerate(results):
        assert torch.equal(result, rank * x.T)


def test_the_world_has_the_size_of_the_call(ranks: Pool) -> None:
    for world in (2, 8, 1, 4, 2, 4, 8):
        assert ranks.run(world, total) == [world] * world


def test_nothing_of_an_old_world_is_used_in_a_new_one(ranks: Pool) -> None:
    for groups_before, world in enumerate((4, 2, 4, 8, 4)):
        for actual, expected in ranks.run(world, row_sums_of_a_sharded_matrix, groups_before):
            assert torch.equal(actual, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_process_groups_do_not_pile_up(ranks: Pool) -> None:
    """Each has threads, one of which never sleeps for long."""
    ranks.run(1, total)  # so that the next call starts without meshes
    threads = [max(ranks.run(2, threads_with_more_groups, 6)) for _ in range(9)]
    assert max(threads[3:]) <= max(threads[:3])


def test_every_rank_draws_other_numbers_and_every_call_the_same(ranks: Pool) -> None:
    first, second = ranks.run(2, drawn), ranks.run(2, drawn)
    assert not torch.equal(*first)
    assert torch.equal(first[0], second[0])


def test_an_error_of_one_rank_comes_with_its_traceback(ranks: Pool) -> None:
    with pytest.raises(RankError, match=r"^rank 1 raised ValueError: a bad value, on ranks \[1\]\n") as caught:
        ranks.run(2, fail, [1], "return")
    assert list(caught.value.failures) == [1]
    assert caught.value.failures[1].type == "ValueError"
    assert caught.value.failures[1].message == "a bad value, on ranks [1]"
    assert "in fail" in caught.value.failures[1].traceback
    assert not caught.value.hung
    assert ranks.run(2, total) == [2, 2]


def test_an_error_of_all_ranks_is_told_once(ranks: Pool) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(4, fail, [0, 1, 2, 3], "return")
    assert list(caught.value.failures) == [0, 1, 2, 3]
    assert len({(f.type, f.message) for f in caught.value.failures.values()}) == 1
    assert str(caught.value).count("Traceback") == 1


# These cost workers, so that they have two of their own.


@pytest.fixture(scope="module")
def pair() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool


def test_who_hangs_and_who_raised_is_told_and_the_pool_goes_on(pair: Pool) -> None:
    assert pair.run(2, total) == [2, 2]
    with pytest.raises(RankError, match="rank 0 hung") as caught:
        pair.run(2, fail, [1], "wait", timeout=0.5)
    assert caught.value.hung == (0,)
    assert list(caught.value.failures) == [1]
    assert "all_reduce" in str(caught.value)  # where rank 0 hangs
    assert pair.run(2, total) == [2, 2]


def test_a_dead_worker_is_told_and_replaced(pair: Pool) -> None:
    with pytest.raises(RankError, match="rank 1 died") as caught:
        pair.run(2, die)
    assert caught.value.died == (1,)
    assert "Rank 1 said:\nlast words" in str(caught.value)
    assert pair.run(2, total) == [2, 2]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("ctrl_c")
def test_no_process_outlives_the_pool_and_an_interrupted_call_none_either() -> None:
    with Pool() as pool:
        first = pool.run(2, os.getpid)
        assert all(map(is_running, first))
        with pytest.raises(KeyboardInterrupt):
            pool.run(2, interrupt, os.getpid())
        assert not any(map(is_running, first))
        assert pool.run(2, total) == [2, 2]
        second = pool.run(2, os.getpid)
        assert all(map(is_running, second))
    assert not any(map(is_running, second))


# Under a script of the caller

SCRIPT = """
import os
from orthon.testing import Pool

print("the script runs")
with Pool() as pool:
    print(len(pool.run(1, os.getpid)))
    try:
        pool.run(1, lambda: None)
    except ValueError as error:
        print(error)
"""


def test_the_callers_script_is_not_run_again(tmp_path: Path) -> None:
    """Where multiprocessing starts a process, it imports the script, which may have no guard against that."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    lines = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[:2] == ["the script runs", "1"]
    assert "'<lambda>' is of the script that runs" in lines[2]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\nfrom orthon.testing import Pool\n"
        "pool = Pool()\nprint(*pool.run(1, os.getpid), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, env=environment)
    pid = int(killed.stdout)
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, "a worker goes on without its pool"
        time.sleep(0.05)


def warn() -> None:
    warnings.warn("mind the step", UserWarning, stacklevel=1)


def test_warnings_are_what_they_are_for_the_caller(ranks: Pool) -> None:
    with pytest.raises(RankError, match="mind the step"):
        ranks.run(1, warn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "mind the")
        ranks.run(1, warn)


def test_a_number_of_ranks_that_there_is_not(ranks: Pool) -> None:
    with pytest.raises(ValueError, match="world should be a number of ranks from 1 to 8, but is 9"):
        ranks.run(9, total)
