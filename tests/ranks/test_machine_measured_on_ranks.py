"""A machine measured by several ranks together: the same on all, with the links between them."""

import os

import pytest
import torch.distributed as dist

from orthon.machines import MACHINES, Machine, measure
from orthon.testing import Pool


def measured_here(ranks_per_node: int) -> Machine:
    before = os.environ.get("LOCAL_WORLD_SIZE")
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks_per_node)
    try:
        machine = measure("cpu", quick=True)
        dist.barrier()
        return machine
    finally:
        if before is None:
            del os.environ["LOCAL_WORLD_SIZE"]
        else:
            os.environ["LOCAL_WORLD_SIZE"] = before


@pytest.mark.parametrize(("world", "ranks_per_node"), [(2, 2), (4, 2), (2, 1)])
def test_all_ranks_find_the_same_machine(ranks: Pool, world: int, ranks_per_node: int) -> None:
    found = ranks.run(world, measured_here, ranks_per_node)
    assert all(machine == found[0] for machine in found)
    machine = found[0]
    assert machine.ranks_per_node == ranks_per_node
    known = MACHINES["cpu"]
    assert (machine.within_node != known.within_node) == (ranks_per_node > 1)
    assert machine.between_nodes != known.between_nodes
    assert (machine.between_nodes == machine.within_node) == (ranks_per_node == world)
    for link in (machine.within_node, machine.between_nodes):
        assert 1e5 < link.bandwidth < 1e12
        assert 1e-7 < link.latency < 10
