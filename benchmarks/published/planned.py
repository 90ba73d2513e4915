"""What Orthon's plan says of published work."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Shard

import orthon
from benchmarks.published import models
from benchmarks.published.models import Dense, mixture
from orthon.linalg import polar
from orthon.linalg.device import meta_stands_for
from orthon.machines import MACHINES, Machine
from orthon.optimizers.mixed import MixedOptimizer
from orthon.plan import PlanRow
from orthon.plan.cluster import Axes, divide, fake_ranks
from orthon.plan.recorder import Recorder

Make = Callable[[nn.Module], MixedOptimizer]


# By owners, as others do it: one rank computes the polar factor of a whole matrix.
MAKERS: Mapping[str, Make] = {
    "AdamW": lambda model: orthon.Muon(orthon.param_groups(model, "adamw", "adamw")),
    "Muon": lambda model: orthon.Muon.for_model(model, polar="newton_schulz", polar_route="owners"),
    "NorMuon": lambda model: orthon.NorMuon.for_model(model, polar="newton_schulz", polar_route="owners"),
    "Muon, Gram": lambda model: orthon.Muon.for_model(model, polar_route="owners"),
    "NorMuon, Gram": lambda model: orthon.NorMuon.for_model(model, polar_route="owners"),
    "Dion2 1/4": lambda model: orthon.Dion2.for_model(model, fraction=0.25),
    "Dion3 1/4": lambda model: orthon.Dion3.for_model(model, fraction=0.25),
}


@contextmanager
def plain_steps() -> Iterator[None]:
    """Within the block, no polynomials of Gram matrices stand for Newton-Schulz steps of whole matrices."""
    module: Any = import_module("orthon.linalg.polar")
    before, module.GRAM_ASPECT = module.GRAM_ASPECT, math.inf
    try:
        yield
    finally:
        module.GRAM_ASPECT = before


def plan_of(model: nn.Module, name: str, machine: Machine) -> PlanRow:
    """Return the plan of one of `MAKERS`, for a model that is divided."""
    with nullcontext() if "Gram" in name or "Dion" in name else plain_steps():
        (row,) = orthon.plan(model, {name: MAKERS[name]}, machine=machine).rows
    return row


def captured(machine: Machine) -> Machine:
    """Return a machine on which a CUDA graph starts all operations of a step: the host does not start each."""
    return replace(machine, launch=1e-12)


@cache
def on_shards(model: Dense, name: str, ranks: int, machine: Machine) -> PlanRow:
    """Return the plan of a dense model that FSDP2 divides."""
    built = model.build()
    with fake_ranks(ranks):
        divide(built, init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",)), Axes(shards="shard"))
        return plan_of(built, name, machine)


B200 = MACHINES["b200"]
GB300 = MACHINES["gb300"]
H100 = MACHINES["h100"]
# A node has four GH200s, each with 4 TB/s of memory. The H200 is that GPU with faster memory.
GH200 = replace(MACHINES["h200"], memory_bandwidth=H100.memory_bandwidth / 3350 * 4000, ranks_per_node=4)


def dion3_14b(optimizer: str) -> float:
    """Return the seconds of a step of Dion3's 14B model on 8 B200s."""
    return on_shards(models.DION3_14B, optimizer, 8, captured(B200)).seconds


def dion3_7b(optimizer: str) -> float:
    """Return the seconds of a step of Dion3's 7B model on 4 GH200s."""
    return on_shards(models.DION3_7B, optimizer, 4, captured(GH200)).seconds


def dion3_1b(optimizer: str) -> float:
    """Return the part of a training step of 452 ms that the 1.06B model's optimizer takes on 8 B200s."""
    return on_shards(models.DION3_1B, optimizer, 8, B200).seconds / 0.452


def polar_seconds(machine: Machine, *shapes: tuple[int, int, int]) -> float:
    """Return the seconds of five plain Newton-Schulz steps of (count, m, n) matrices, one after the other."""

    def work() -> None:
        for count, m, n in shapes:
            for _ in range(count):
                polar(_matrix(m, n), method="newton_schulz", route="direct", dtype=torch.bfloat16, overwrite=True)

    return _seconds(machine, work)


def cholesky_qr_seconds(machine: Machine, m: int, n: int) -> float:
    """Return the seconds of one Cholesky QR in float32."""

    def work() -> None:
        A = _matrix(m, n, torch.float32)
        R, _ = torch.linalg.cholesky_ex(A.mT @ A, upper=True)
        torch.linalg.solve_triangular(R, A, upper=True, left=False)

    return _seconds(machine, work)


def _matrix(m: int, n: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(1, m, n, dtype=dtype, device="meta")


def _seconds(machine: Machine, work: Callable[[], None]) -> float:
    with meta_stands_for(torch.device(machine.device)), Recorder(machine) as recorder:
        work()
        tallies = recorder.taken().values()
    working: float = sum(tally.seconds for tally in tallies)
    launching: float = sum(tally.launches for tally in tallies) * machine.launch
    return max(working, launching)


def of_mixture(
    shapes: dict[str, tuple[int, int]], *, layers: int, experts: int, width: int, inner: int, ranks: int, rate: float
) -> float:
    """Return the part of a training step that Muon takes longer than AdamW, on GB300s with experts divided.

    NVIDIA gives operations per second of Muon over a whole training step. Those that the plan counts, divided by that
    rate, are the seconds of the step. Master weights and states are in float32, and polar factors in bfloat16.

    Args:
        shapes: of the linear maps of a layer. They are divided as by FSDP2, as Muon's owners take them whole.
        layers: of a pipeline stage.
        experts: of a layer, each whole on one rank.
        width: of the hidden state.
        inner: width inside an expert.
        ranks: of a pipeline stage.
        rate: operations per second of Muon.
    """
    model = mixture(shapes, layers=layers, experts=experts, width=width, inner=inner, dtype=torch.float32)
    # A rack has 72 GPUs, of which a stage takes up to 64.
    machine = replace(GB300, ranks_per_node=64)
    with fake_ranks(ranks):
        divide(model, init_device_mesh("cpu", (ranks,), mesh_dim_names=("shard",)), Axes(shards="shard"))
        adamw, muon = (plan_of(model, name, machine) for name in ("AdamW", "Muon"))
    return (muon.seconds - adamw.seconds) * rate / muon.work


def layer_sharding() -> float:
    """Return how many times as long Muon's step takes if ranks repeat the work as if it is dealt out by matrices.

    Experts are divided over 8 ranks, and each over 2; other matrices over 16, by tensor parallelism and along its
    other side. Repeating it, a rank orthonormalizes all other matrices and all of its part of the experts.
    """
    layers, experts, width, inner = 24, 128, 4096, 1536
    dtype = torch.bfloat16
    model = mixture(models.QWEN3_235B, layers=layers, experts=experts, width=width, inner=inner, dtype=dtype)
    with fake_ranks(16):
        mesh = init_device_mesh("cpu", (8, 2), mesh_dim_names=("shard", "tensor"))
        divide(model, mesh, Axes(shards="shard", tensor="tensor"), products=_products(model))
        dealt = plan_of(model, "Muon", GB300)
    alone = mixture(models.QWEN3_235B, layers=layers, experts=experts // 8, width=width, inner=inner, dtype=dtype)
    repeated = plan_of(alone, "Muon", GB300)
    numbers = {kind: sum(p.numel() for p in part.parameters()) for kind, part in alone.named_children()}
    gathered = numbers["layers"] * 15 / 16 + numbers["experts"] / 2
    return (repeated.seconds + GB300.sending_seconds(2 * gathered, range(16), kind="gather")) / dealt.seconds


def _products(model: nn.Module) -> dict[str, Placement]:
    """Return which dim tensor parallelism cuts: of experts the outputs, of "o" its inputs, of others the outputs."""
    names = [name for name, param in model.named_parameters() if param.ndim > 1]
    return {name: Shard(int(name.startswith("experts") or ".o." in name)) for name in names}
