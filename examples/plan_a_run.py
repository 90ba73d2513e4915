"""Planning a run: what a step of several optimizers would cost for a LLaMA of 1B on 64 GPUs that are not here.

No weights are made, and there is one process. On the command line, `orthon plan` does the same.

Run: python examples/plan_a_run.py
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

import orthon
from orthon.plan.cluster import Axes, divide, fake_ranks

REPLICAS, SHARDS = 8, 8

llama = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
)
with torch.device("meta"):
    model = LlamaForCausalLM(llama)

optimizers: dict[str, Callable[[nn.Module], orthon.MixedOptimizer]] = {
    "Dion 1/4": partial(orthon.Dion.for_model, rank_fraction=1 / 4),
    "Dion 1/16": partial(orthon.Dion.for_model, rank_fraction=1 / 16),
    "Muon": orthon.Muon.for_model,
    "Dion2 1/4": orthon.Dion2.for_model,
}
with fake_ranks(REPLICAS * SHARDS):
    mesh = init_device_mesh("cpu", (REPLICAS, SHARDS), mesh_dim_names=("replicate", "shard"))
    divide(model, mesh, Axes(copies="replicate", shards="shard"))
    print(orthon.plan(model, optimizers, machine="h100"))
