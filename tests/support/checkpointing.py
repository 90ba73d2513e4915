"""A run that is saved on one layout and goes on on another, through torch.distributed.checkpoint."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from orthon import MatrixView, MixedOptimizer
from orthon.saving import LoadPlanner, SafeReader
from orthon.testing import layouts
from orthon.testing.layouts import LAYOUTS

ALONE = "one process"
SAVED, STEPS = 2, 4  # the step after which the run is saved, and the last one
EXACT: dict[str, Any] = {"polar": "svd"}

# Every rule, as a param group: its shape and its options.
GROUPS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "dion wide": ((12, 20), {"algorithm": "dion"}),
    "dion tall": ((20, 12), {"algorithm": "dion", "rank_fraction": 0.5}),
    "dion uneven": ((13, 9), {"algorithm": "dion", "rank_fraction": 1.0, "orthonormal_side": "long"}),
    "dion blocks": ((16, 12), {"algorithm": "dion", "view": MatrixView(blocks=(8, 4, 4))}),
    "muon": ((13, 9), {"algorithm": "muon", "ema": True, **EXACT}),
    "normuon": ((9, 13), {"algorithm": "normuon", **EXACT}),
    "normuon blocks": ((16, 12), {"algorithm": "normuon", "view": MatrixView(blocks=4), **EXACT}),
    "dion2": ((12, 20), {"algorithm": "dion2", **EXACT}),
    "dion2 random": ((20, 12), {"algorithm": "dion2", "selection": "random", **EXACT}),
    "dion3": ((12, 9), {"algorithm": "dion3", "fraction": 0.5, **EXACT}),
    "adamw": ((13, 9), {"algorithm": "adamw", "amsgrad": True}),
    "lion": ((5, 12), {"algorithm": "lion"}),
}


class Weights(nn.Module):
    """Parameters that lie as a layout says; those of `seed` None are zero, as of a run that is to be loaded."""

    def __init__(self, layout: str, seed: int | None) -> None:
        super().__init__()
        for index, (name, (shape, _)) in enumerate(GROUPS.items()):
            whole = torch.zeros(shape, dtype=torch.float64)
            if seed is not None:
                whole = _randn(1000 * seed + index, shape)
            self.register_parameter(name, nn.Parameter(_build(layout, whole)))


def run_of(layout: str, seed: int | None, route: str | None = None) -> tuple[Weights, MixedOptimizer]:
    """Return weights and an optimizer of all rules, which work by a route where there are several."""
    model = Weights(layout, seed)
    groups = [
        {"params": [(name, param)], **GROUPS[name][1], "weight_decay": 0.1} for name, param in model.named_parameters()
    ]
    for group in groups if route is not None else ():
        if group["algorithm"] == "dion":
            group["route"] = route
        elif group["algorithm"] in ("muon", "normuon") and "view" not in group:
            group["polar_route"] = route
    distributed: dict[str, Any] = {}
    if layout != ALONE and LAYOUTS[layout].replicas:
        distributed["replicas"] = layouts.replica_group(layout, dist.get_world_size())
        distributed["sync_gradients"] = LAYOUTS[layout].compressed
    return model, MixedOptimizer(groups, algorithm="dion", options={"lr": 0.1}, **distributed)


def train(layout: str, model: nn.Module, optimizer: MixedOptimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for index, (_, param) in enumerate(model.named_parameters()):
            whole = _randn(100 * step + index, tuple(param.shape))
            if layout != ALONE and LAYOUTS[layout].compressed:
                world = dist.get_world_size()
                each = layouts.noisy(whole, layouts.number_of_replicas(layout, world), generator)
                whole = each[layouts.replica(layout, world, dist.get_rank())]
            param.grad = _build(layout, whole)
        optimizer.step()
        optimizer.zero_grad()


@cache
def uninterrupted() -> dict[str, Tensor]:
    """Return what the weights are at the end of the run in one process."""
    model, optimizer = run_of(ALONE, 1)
    train(ALONE, model, optimizer, range(STEPS))
    return {name: param.detach() for name, param in model.named_parameters()}


def half_run(layout: str, route: str | None = None) -> tuple[Weights, MixedOptimizer]:
    """Train on a layout to the middle of the run."""
    model, optimizer = run_of(layout, 1, route)
    train(layout, model, optimizer, range(SAVED))
    if layout != ALONE and LAYOUTS[layout].compressed:
        optimizer.consolidate()
    return model, optimizer


def save(layout: str, folder: Path, route: str | None = None) -> None:
    """Train on a layout to the middle of the run, and save."""
    model, optimizer = half_run(layout, route)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what it is going to change
        dcp.save(state, checkpoint_id=folder)


def load(
    layout: str, folder: Path, rank_fraction: float | None = None, route: str | None = None
) -> tuple[Weights, MixedOptimizer]:
    model, optimizer = run_of(layout, None, route)
    for group in optimizer.param_groups if rank_fraction is not None else ():
        if group["algorithm"] == "dion":
            group["rank_fraction"] = rank_fraction
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=SafeReader(folder), planner=LoadPlanner())
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    return model, optimizer


def go_on(layout: str, folders: dict[str, Path], route: str | None = None) -> None:
    """Load what other layouts have saved, train to the end, and compare with the uninterrupted run."""
    for source, folder in folders.items():
        model, optimizer = load(layout, folder, route=route)
        assert route is None or {group.get("route", route) for group in optimizer.param_groups} == {route}
        _finish(layout, model, optimizer, f"from {source} to {layout}")


def pass_on(source: str, target: str, options: dict[str, bool]) -> None:
    """Hand the state dicts of one layout to another without files, and train to the end."""
    chosen = StateDictOptions(**options)
    model, optimizer = half_run(source)
    weights, state = get_state_dict(model, optimizer, options=chosen)
    model, optimizer = run_of(target, None)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=chosen)
    _finish(target, model, optimizer, f"from {source} to {target}, {options}")


def go_on_with_another_rank(layout: str, folder: Path, rank_fraction: float) -> None:
    """Load with another rank, and compare the right factors and the next weights with those of one process."""
    results = []
    for where in (ALONE, layout):
        model, optimizer = load(where, folder, rank_fraction)
        values = {}
        for name, param in model.named_parameters():
            for key, value in optimizer.state[param].items():
                values[f"{key} of {name}"] = _whole(value)
        train(where, model, optimizer, range(SAVED, STEPS))
        results.append(values | {name: _whole(param.detach()) for name, param in model.named_parameters()})
    for name, right in results[0].items():
        torch.testing.assert_close(results[1][name], right, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def _finish(layout: str, model: nn.Module, optimizer: MixedOptimizer, case: str) -> None:
    train(layout, model, optimizer, range(SAVED, STEPS))
    for name, param in model.named_parameters():
        right = uninterrupted()[name]
        if layout != ALONE:
            parts = layouts.parts(layout, dist.get_world_size(), (param.shape[0], param.shape[1]))
            rows, cols = parts[dist.get_rank()]
            right = right[rows][:, cols]
        torch.testing.assert_close(
            layouts.local(param.detach()), right, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{case}, {n}: {m}"
        )


def _whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).clone()


def _build(layout: str, whole: Tensor) -> Tensor:
    return whole.clone() if layout == ALONE else layouts.build(layout, dist.get_world_size(), whole)


def _randn(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
