"""HSDP with compressed synchronization: 2 replicas of 2 shards each. Replicas send Dion's factors, not gradients.

FSDP2 sees the shards alone. The optimizer averages over the replicas, so nothing else may do so. The update must have
low rank for that: the Dion of the paper has, and Dion with a tail has not.

Run: torchrun --standalone --nproc-per-node 4 examples/hsdp_compressed.py
"""

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import orthon

WIDTH = 128


def kilobytes(optimizer: orthon.Dion) -> float:
    """Return what the process that sends the most sends in a step."""
    most = orthon.explain(optimizer).most_bytes
    return most.sent / 1e3 if most else 0.0


def main() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    torch.manual_seed(0)
    layers = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(*layers)
    fully_shard(model, mesh=mesh["shard"])

    def dion(**options: Any) -> orthon.Dion:
        return orthon.Dion.for_model(model, lr=0.02, replicas=mesh["replicate"], sync_gradients=True, **options)

    optimizer = dion(rank_fraction=1 / 8, **orthon.Dion.PAPER)
    compressed, full = kilobytes(optimizer), kilobytes(dion(rank_fraction=1 / 8))
    if dist.get_rank() == 0:
        print(f"a step sends {compressed:.0f} kB; with gradients averaged in full it would be {full:.0f} kB")

    data = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(dist.get_rank()))  # each has its own
    for step in range(81):
        loss = (model(data) - data.roll(1, dims=1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0 and step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    optimizer.consolidate()  # the replicas' momenta differ; after this, state_dict() may be called


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    time.sleep(1)  # gloo's threads let go of the last tensors; they would abort a Python that ends (PyTorch #190489)
    dist.destroy_process_group()
