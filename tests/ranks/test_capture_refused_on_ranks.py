"""CUDA graphs are for one process."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from orthon import Dion
from orthon.testing import Pool


def refusal(kind: str) -> str:
    mesh = init_device_mesh("cpu", (2,))
    weight = torch.ones(4, 3)
    if kind == "sharded":
        param = nn.Parameter(DTensor.from_local(weight.chunk(2)[mesh.get_rank()], mesh, [Shard(0)]))
    else:
        param = nn.Parameter(weight)
    replicas = {} if kind == "sharded" else {"replicas": mesh}
    optimizer = Dion([("w", param)], nonfinite="skip", capturable=True, **replicas)
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        optimizer.step()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["sharded", "replicas"])
def test_capturable_groups_on_several_ranks_are_refused(ranks: Pool, kind: str) -> None:
    for message in ranks.run(2, refusal, kind):
        assert "parameter 'w': capturable should be False where several ranks" in message
        assert "(0, 1)" in message
