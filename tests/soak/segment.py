"""One segment of a soak run in a worker: load, train with faults, save, and tell what is left."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from orthon import MixedOptimizer
from orthon.saving import LoadPlanner, SafeReader
from tests.soak.memory import resident_kb
from tests.soak.model import batch, distribute, mesh, model, optimizer_of, set_learning_rates
from tests.soak.plan import Segment, fault


@dataclass(frozen=True)
class Report:
    """What a rank tells of a segment.

    Attributes:
        losses: of the rank's part of each batch; empty if it took no part.
        skipped: how many steps were left out.
        digest: of all weights and all state; the same on all ranks that took part.
        resident_kb: memory at the end.
    """

    losses: list[float]
    skipped: int
    digest: str
    resident_kb: float


def run_segment(segment: Segment, folder: str, seed: int) -> Report:
    """Run a segment on this rank."""
    mesh(segment.kind, segment.world)  # also where this rank is not in it
    losses, skipped, digest = [], 0, ""
    if dist.get_rank() < segment.world:
        losses, skipped, digest = _train(segment, Path(folder), seed)
    return Report(losses, skipped, digest, resident_kb())


def _train(segment: Segment, folder: Path, seed: int) -> tuple[list[float], int, str]:
    ranks = mesh(segment.kind, segment.world)
    net, place, parts, distributed = distribute(segment.kind, ranks)
    optimizer = optimizer_of(net, **distributed)
    group = ranks.get_group() if ranks.ndim == 1 else None  # on two axes they are all ranks that there are
    if segment.start:
        state = _state(net, optimizer)
        reader = SafeReader(folder / str(segment.start))
        dcp.load(state, storage_reader=reader, planner=LoadPlanner(), process_group=group)
        set_model_state_dict(net, state["model"])
        set_optimizer_state_dict(net, optimizer, state["optimizer"])
    losses = []
    for step in range(segment.start, segment.stop):
        inputs, targets = (whole.chunk(parts)[place] for whole in batch(step))
        loss = nn.functional.mse_loss(net(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        _disturb(net, step, seed, segment.world)
        set_learning_rates(optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in segment.saves:
            optimizer.consolidate()
            dcp.save(_state(net, optimizer), checkpoint_id=folder / str(step + 1), process_group=group)
    optimizer.consolidate()
    return losses, optimizer.skipped_steps, _digest(net, optimizer)


def _state(net: nn.Module, optimizer: MixedOptimizer) -> dict[str, Any]:
    return {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer)}


def _disturb(net: nn.Module, step: int, seed: int, world: int) -> None:
    """Let happen what goes wrong in this step, on one of the ranks."""
    what = fault(step, seed)
    if dist.get_rank() != what.rank % world:
        return
    time.sleep(what.seconds)
    if what.bad is not None:
        grads = [_local(param.grad) for param in net.parameters() if param.grad is not None]
        grads = [grad for grad in grads if grad.numel()]
        grads[int(what.place * len(grads))].view(-1)[-1] = what.bad


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _digest(net: nn.Module, optimizer: MixedOptimizer) -> str:
    """Return a hash of all weights and state, each put together of this rank's copy of the shards."""
    found = hashlib.blake2b()
    for param in net.parameters():
        for value in (param.detach(), *optimizer.state[param].values()):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            found.update(whole.double().numpy().tobytes())
    return found.hexdigest()


def uninterrupted(steps: int, seed: int) -> list[float]:
    """Return the losses of one process that goes through without any fault, but leaves the same steps out."""
    net = model()
    optimizer = optimizer_of(net)
    losses = []
    for step in range(steps):
        inputs, targets = batch(step)
        loss = nn.functional.mse_loss(net(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        if fault(step, seed).bad is None:
            set_learning_rates(optimizer, step)
            optimizer.step()
        optimizer.zero_grad()
    return losses
