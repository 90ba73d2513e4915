"""What `explain` tells of the busiest ranks, on every layout, against what these ranks tell of themselves."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import orthon
from orthon import Dion, Dion2, NorMuon
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on
from tests.support.short_run import marked, one_of_each

RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Dion by owners": (Dion, {"route": "owners"}),
    "Dion on shards": (Dion, {"route": "shards", "rank_fraction": 1 / 16}),
    "NorMuon": (NorMuon, {}),
    "Dion2": (Dion2, {"selection": "random"}),
}
# Fewer than ranks, and some are not divisible.
SHAPES = [(64, 48)] * 5 + [(37, 50)] * 2


def on_this_rank(layout: str, rule: str) -> orthon.Explanation:
    world, kind = dist.get_world_size(), LAYOUTS[layout]
    make, options = RULES[rule]
    named = [
        (f"w{i}", nn.Parameter(layouts.build(layout, world, torch.zeros(shape)))) for i, shape in enumerate(SHAPES)
    ]
    group = layouts.replica_group(layout, world) if kind.replicas else None
    return orthon.explain(make(named, replicas=group, sync_gradients=kind.compressed, **options), machine="h100")


# In the order of world sizes, since another one costs a new process group.
CASES = [case for case in product((4, 8), LAYOUTS, RULES) if case[1] in layouts_on(case[0])]
SHORT = one_of_each(CASES)


@pytest.mark.parametrize(("world", "layout", "rule"), marked(CASES, SHORT))
def test_the_busiest_ranks_say_the_same_of_themselves(ranks: Pool, world: int, layout: str, rule: str) -> None:
    told = ranks.run(world, on_this_rank, layout, rule)
    shares = [explanation.here for explanation in told]
    for rank, explanation in enumerate(told):
        assert shares[rank].rank == rank
        assert explanation.most_work == shares[explanation.most_work.rank]
        assert explanation.most_bytes == shares[explanation.most_bytes.rank]
        if layout == "unaware":  # no rank knows of another
            assert explanation.most_work.rank == explanation.most_bytes.rank == rank
            continue
        assert explanation.most_work.working == pytest.approx(max(share.working for share in shares))
        most = max(share.sent + share.received for share in shares)
        # With so few matrices it matters what the search for the busiest does not count: that copies level what they
        # gather, and on shards who factors which Gram matrix. Which rows Dion2 selects no plan tells.
        least = 0.75 if rule in ("Dion on shards", "Dion2") else 0.9
        assert explanation.most_bytes.sent + explanation.most_bytes.received >= least * most
