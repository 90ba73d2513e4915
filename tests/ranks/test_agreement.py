"""Ranks that do not agree, and gradients that are not finite on one of them: the same error on all, never a hang."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import orthon
from orthon import Dion
from orthon.testing import Pool, RankError

WORLD = 4


def sharded(rows: int, cols: int) -> nn.Parameter:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    part = torch.ones(rows // mesh.size(), cols)
    return nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False))


def random_like(param: nn.Parameter) -> DTensor:
    part = torch.randn_like(param.to_local())
    return DTensor.from_local(part, param.device_mesh, param.placements, run_check=False)


def train(names: list[str], shapes: list[tuple[int, int]], without: set[str], options: dict[str, Any]) -> None:
    named = [(name, sharded(*shape)) for name, shape in zip(names, shapes, strict=True)]
    optimizer = Dion(named, **options)
    for _ in range(2):
        for name, param in named:
            param.grad = None if name in without else random_like(param)
        optimizer.step()


def disagree(what: str, on: int) -> None:
    names, shapes, without = ["a", "b", "c"], [(8, 4)] * 3, set()
    options: dict[str, Any] = {}
    if dist.get_rank() == on:
        if what == "shape":
            shapes[1] = (8, 5)
        elif what == "order":
            names[1:] = ["c", "b"]
        elif what == "option":
            options["rank_fraction"] = 0.5
        elif what == "lr":
            options["lr"] = 0.02
        elif what == "machine":
            options["machine"] = "h100"
        elif what == "wave_memory":
            options["wave_memory"] = 5000
        elif what == "gradient":
            without.add("c")
        elif what == "all gradients":
            without.update(names)
        elif what == "missing parameter":
            del names[2], shapes[2]
    train(names, shapes, without, options)


EXPECTED = {
    "shape": "'b': shape should be the same on all ranks, but is .*(8, 4).* on rank 0 and .*(8, 5).* on rank 2",
    "order": "'b': rank 2 has 'c' in its place",
    "option": "'a': rank_fraction should be the same on all ranks, but is 0.25 on rank 0 and 0.5 on rank 2",
    "lr": "'a': lr should be the same on all ranks, but is 0.01 on rank 0 and 0.02 on rank 2",
    "machine": "'a': machine should be the same on all ranks, but is .*'cpu'.* on rank 0 and .*'h100'.* on rank 2",
    "wave_memory": "'a': wave_memory should be the same on all ranks, but is .* on rank 0 and 5000 on rank 2",
    "gradient": "'c': gradient should be the same on all ranks, but is torch.float32 on rank 0 and none on rank 2",
    "all gradients": "'a': gradient should be the same on all ranks, but is torch.float32 on rank 0 and none on rank 2",
    "missing parameter": "'c': is not on all ranks; rank 0 gives the optimizer 3 parameters, and rank 2 2",
}


@pytest.mark.parametrize("what", EXPECTED)
def test_disagreement_is_an_error_on_every_rank(ranks: Pool, what: str) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(WORLD, disagree, what, 2, timeout=20)
    failures = caught.value.failures
    assert sorted(failures) == list(range(WORLD)), str(caught.value)
    assert not caught.value.hung
    for failure in failures.values():
        assert failure.type == "ValueError"
        message = EXPECTED[what].replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(failure.message)


def later_without(on: int, nonfinite: str) -> None:
    params = [sharded(8, 4), sharded(8, 4)]
    optimizer = Dion([("a", params[0]), ("b", params[1])], nonfinite=nonfinite)
    for step in range(3):
        for param in params:
            param.grad = random_like(param)
        if step == 2 and dist.get_rank() == on:
            params[1].grad = None
        optimizer.step()


def test_a_gradient_that_vanishes_later_on_one_rank(ranks: Pool) -> None:
    with pytest.raises(RankError, match="'b': gradient should be the same") as caught:
        ranks.run(WORLD, later_without, 1, "raise", timeout=20)
    assert sorted(caught.value.failures) == list(range(WORLD))


def later_other_lr(on: int) -> None:
    param = sharded(8, 4)
    optimizer = Dion([("a", param)])
    for step in range(3):
        param.grad = random_like(param)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1 + (step == 2 and dist.get_rank() == on))
        optimizer.step()


def test_a_learning_rate_that_drifts_apart(ranks: Pool) -> None:
    with pytest.raises(RankError, match="'a': lr should be the same on all ranks, but is 0.03.* and 0.025") as caught:
        ranks.run(WORLD, later_other_lr, 1, timeout=20)
    assert sorted(caught.value.failures) == list(range(WORLD))


def nonfinite_somewhere(mode: str, bad: float) -> list[torch.Tensor]:
    params = [sharded(8, 4), sharded(4, 8)]
    optimizer = Dion([("a", params[0]), ("b", params[1])], nonfinite=mode)
    said = ""
    before: list[torch.Tensor] = []
    for step in range(3):
        for param in params:
            param.grad = torch.ones_like(param) * (step + 1)
        if step == 1:
            before = _everything(optimizer)
            if dist.get_rank() == 3:
                params[1].grad.to_local()[0, 0] = bad
        try:
            optimizer.step()
        except FloatingPointError as error:
            said = str(error)
        if step == 1:
            for old, new in zip(before, _everything(optimizer), strict=True):
                assert torch.equal(old, new)
            if mode == "raise":
                assert "the gradient of 'b' has infinities" in said
    assert optimizer.skipped_steps == (mode == "skip")
    return _everything(optimizer)


def _everything(optimizer: orthon.MixedOptimizer) -> list[torch.Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = [value for param in params for value in optimizer.state[param].values()]
    return [x.to_local().clone() if isinstance(x, DTensor) else x.clone() for x in [*params, *states]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_a_gradient_that_is_not_finite_on_one_rank(ranks: Pool, mode: str, bad: float) -> None:
    ranks.run(WORLD, nonfinite_somewhere, mode, bad, timeout=20)


def different_replicas(told: bool) -> None:
    param = nn.Parameter(torch.ones(6, 4))
    optimizer = Dion([("w", param)], replicas=dist.group.WORLD, sync_gradients=told)
    param.grad = torch.randn(6, 4)  # seeds differ between ranks
    optimizer.step()


def test_replicas_with_gradients_of_their_own(ranks: Pool) -> None:
    ranks.run(WORLD, different_replicas, True)
    with pytest.raises(RankError, match=r"'w': its gradients differ between ranks .* sync_gradients=True") as caught:
        ranks.run(WORLD, different_replicas, False, timeout=20)
    assert sorted(caught.value.failures) == list(range(WORLD))


def plain_among_sharded(same: bool, where: str) -> None:
    params = [("a", sharded(8, 4)), ("b", nn.Parameter(torch.ones(6, 4)))]
    options = {"replicas": dist.group.WORLD, "sync_gradients": not same} if where == "replicas" else {}
    optimizer = Dion([params[1]] if where == "replicas" else params, **options)
    params[0][1].grad = random_like(params[0][1])
    params[1][1].grad = torch.ones(6, 4) if same else torch.randn(6, 4)
    optimizer.step()


def test_a_plain_parameter_among_sharded_ones(ranks: Pool) -> None:
    ranks.run(WORLD, plain_among_sharded, True, "alone")
    ranks.run(WORLD, plain_among_sharded, False, "replicas")
    with pytest.raises(RankError, match="'b': its gradients differ between ranks that have copies") as caught:
        ranks.run(WORLD, plain_among_sharded, False, "alone", timeout=20)
    assert sorted(caught.value.failures) == list(range(WORLD))


def experts() -> None:
    """Dense parameters on all ranks, and other experts on each half of them, one without a gradient."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("expert", "shard"))
    dense = sharded(8, 4)
    part = torch.ones(3, 5)
    expert = nn.Parameter(DTensor.from_local(part, mesh["shard"], [Shard(0)], run_check=False))
    half = mesh.get_local_rank("expert")
    optimizer = Dion([("dense", dense), (f"experts.{half}", expert)])
    for step in range(3):
        dense.grad = random_like(dense)
        expert.grad = random_like(expert) if (half, step) != (1, 1) else None
        optimizer.step()


def test_experts_of_their_own_on_parts_of_the_ranks(ranks: Pool) -> None:
    ranks.run(WORLD, experts, timeout=20)


def asymmetric_groups() -> None:
    dist.new_group([0, 1])
    mesh = init_device_mesh("cpu", (2, 2))
    param = nn.Parameter(DTensor.from_local(torch.ones(3, 4), mesh, [Shard(0), Shard(1)], run_check=False))
    optimizer = Dion([("w", param)])
    param.grad = random_like(param)
    optimizer.step()


def test_groups_that_the_user_made_on_some_ranks_alone(ranks: Pool) -> None:
    ranks.run(WORLD, asymmetric_groups, timeout=20)


def stages() -> None:
    """Two pipeline stages with different parameters, and other numbers of steps."""
    stage = dist.get_rank() // 2
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "dp"))["dp"]
    params = []
    for i in range(1 + 2 * stage):
        part = torch.ones(3, 4 + stage)
        params.append((f"w{i}", nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False))))
    optimizer = Dion(params)
    for _ in range(2 + stage):
        for _, param in params:
            param.grad = random_like(param)
        optimizer.step()


def test_pipeline_stages_do_not_wait_for_each_other(ranks: Pool) -> None:
    ranks.run(WORLD, stages, timeout=20)
