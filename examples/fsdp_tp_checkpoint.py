"""FSDP2 + TP with checkpoints on another mesh: train on 2 × 2 processes, save, and go on with 4 shards and no TP.

The optimizer reads from the parameters how they lie. The state that one mesh has saved fits every other.

Run: torchrun --standalone --nproc-per-node 4 examples/fsdp_tp_checkpoint.py
"""

import tempfile
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import orthon
from orthon.saving import LoadPlanner, SafeReader

DATA = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))


def on_mesh(shards: int, tensor_parallel: int) -> tuple[nn.Module, orthon.Dion]:
    torch.manual_seed(1)
    mesh = init_device_mesh("cpu", (shards, tensor_parallel), mesh_dim_names=("shard", "tp"))
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32), nn.GELU(), nn.Linear(32, 32))
    if tensor_parallel > 1:
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["shard"])
    return model, orthon.Dion.for_model(model, lr=0.02)  # last, when the parameters are where they stay


def train(name: str, model: nn.Module, optimizer: orthon.Dion, steps: range) -> None:
    for step in steps:
        loss = (model(DATA) - DATA.roll(1, dims=1)).square().mean()  # all processes have the same data here
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0 and step % 10 == 0:
            print(f"{name}, step {step}: loss {loss.item():.5f}")


dist.init_process_group("gloo")
dist.broadcast_object_list(folder := [tempfile.mkdtemp()])
model, optimizer = on_mesh(shards=2, tensor_parallel=2)
train("2 shards x 2 TP", model, optimizer, range(31))
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
train("2 shards x 2 TP", model, optimizer, range(31, 61))  # for comparison

model, optimizer = on_mesh(shards=4, tensor_parallel=1)
weights, state = get_state_dict(model, optimizer)
dcp.load({"model": weights, "optimizer": state}, storage_reader=SafeReader(folder[0]), planner=LoadPlanner())
set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
train("4 shards", model, optimizer, range(31, 61))
time.sleep(1)  # gloo's threads let go of the last tensors; they would abort a Python that ends (PyTorch #190489)
dist.destroy_process_group()
