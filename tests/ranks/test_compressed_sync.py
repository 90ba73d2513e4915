"""Gradients that the optimizer averages over replicas: compressed, in full, and what is left different."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import orthon
from orthon import Dion
from orthon.testing import Pool, RankError

WORLD = 4
SHAPES = {"matrix": (12, 16), "cheaper in full": (12, 16), "bias": (5,), "lion": (7, 3)}


def groups(params: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [("matrix", params["matrix"])]},
        {"params": [("cheaper in full", params["cheaper in full"])], "rank_fraction": 1.0},
        {"params": [("bias", params["bias"])], "algorithm": "adamw"},
        {"params": [("lion", params["lion"])], "algorithm": "lion"},
    ]


def gradients(step: int, rank: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def fresh() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }


def train(missing_on: int | None, steps: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and momenta of the replicas, and those of one process with the mean gradient."""
    world, rank = dist.get_world_size(), dist.get_rank()
    params, alone = fresh(), fresh()
    optimizer = Dion(groups(params), replicas=dist.group.WORLD, sync_gradients=True, **Dion.PAPER)
    expected = Dion(groups(alone), **Dion.PAPER)
    for step in range(steps):
        everyone = [gradients(step, other) for other in range(world)]
        if missing_on is not None and step == 2:
            everyone[missing_on] = {name: torch.zeros_like(grad) for name, grad in everyone[missing_on].items()}
        for name, param in params.items():
            param.grad = everyone[rank][name]
            if missing_on == rank and step == 2:
                param.grad = None
            alone[name].grad = sum(each[name] for each in everyone) / world
        optimizer.step()
        expected.step()
    with pytest.raises(RuntimeError, match=r"optimizer\.consolidate\(\)"):
        optimizer.state_dict()
    optimizer.consolidate()
    optimizer.state_dict()
    for name, param in params.items():
        torch.testing.assert_close(param, alone[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        for key, value in expected.state[alone[name]].items():
            torch.testing.assert_close(
                optimizer.state[param][key], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name, k=key: f"{n} {k}: {m}"
            )
    return {name: param.detach() for name, param in params.items()}


@pytest.mark.parametrize("missing_on", [None, 0, 2])
def test_the_optimizer_averages_what_ddp_would(ranks: Pool, missing_on: int | None) -> None:
    results = ranks.run(WORLD, train, missing_on)
    for other in results[1:]:
        for name, weight in other.items():
            assert torch.equal(weight, results[0][name]), f"{name}: replicas differ"


def train_with_change(change: dict[str, Any], consolidates: bool) -> tuple[Tensor, Tensor]:
    """Return the weights of this replica and of one process, whose options change after three steps."""
    params = {"matrix": fresh()["matrix"]}, {"matrix": fresh()["matrix"]}
    optimizer = Dion([("matrix", params[0]["matrix"])], replicas=dist.group.WORLD, sync_gradients=True, **Dion.PAPER)
    expected = Dion([("matrix", params[1]["matrix"])], **Dion.PAPER)
    for step in range(6):
        if step == 3:
            for each in (optimizer, expected):
                each.param_groups[0].update(change)
            if consolidates:
                optimizer.consolidate()
        everyone = [gradients(step, other)["matrix"] for other in range(dist.get_world_size())]
        params[0]["matrix"].grad = everyone[dist.get_rank()]
        params[1]["matrix"].grad = sum(everyone) / len(everyone)
        optimizer.step()
        expected.step()
    optimizer.state_dict()  # no momentum differs any more
    return params[0]["matrix"].detach(), params[1]["matrix"].detach()


@pytest.mark.parametrize("consolidates", [False, True])
@pytest.mark.parametrize(
    "change", [{"tail": 0.7, "route": "shards"}, {"tail": 0.7}, {"route": "owners"}, {"power_iterations": 3}], ids=str
)
def test_options_that_end_the_compression(ranks: Pool, change: dict[str, Any], consolidates: bool) -> None:
    """The momenta of the replicas become their mean first."""
    results = ranks.run(WORLD, train_with_change, change, consolidates)
    for weight, expected in results:
        torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(weight, results[0][0]), "replicas differ"


def explained() -> dict[str, str]:
    optimizer = Dion(groups(fresh()), replicas=dist.group.WORLD, sync_gradients=True, **Dion.PAPER)
    return {batch.parameters[0]: batch.synchronization for batch in orthon.explain(optimizer).batches}


def test_what_is_cheaper_in_full_is_averaged_in_full(ranks: Pool) -> None:
    for said in ranks.run(WORLD, explained):
        assert said == {"matrix": "compressed", "cheaper in full": "full", "bias": "full", "lion": "full"}


def with_replicas(replicas: str) -> None:
    param = nn.Parameter(torch.ones(4, 4))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    if replicas == "two axes":
        Dion([param], replicas=mesh)
    elif replicas == "number":
        Dion([param], replicas=4)  # type: ignore[arg-type]
    elif replicas == "sync without":
        Dion([param], sync_gradients=True)
    elif replicas == "of others":
        group = dist.new_group([0, 1])
        if dist.get_rank() > 1:
            Dion([param], replicas=group)
        else:
            raise ValueError("replicas should include this rank")  # as the others say, so that all ranks do
    elif replicas == "the shards":
        part = torch.ones(2, 4)
        sharded = nn.Parameter(DTensor.from_local(part, mesh, [Replicate(), Shard(0)], run_check=False))
        sharded.grad = torch.ones_like(sharded)
        Dion([("w", sharded)], replicas=mesh["shard"]).step()


@pytest.mark.parametrize(
    ("replicas", "error", "message"),
    [
        ("two axes", "ValueError", "a device mesh with one axis"),
        ("number", "TypeError", "replicas should be a process group or a device mesh, but is 4"),
        ("sync without", "ValueError", "averages over replicas=..., but replicas is None"),
        ("of others", "ValueError", "replicas should include this rank"),
        ("the shards", "ValueError", "'w': replicas should be ranks with copies of it"),
    ],
)
def test_replicas_that_make_no_sense(ranks: Pool, replicas: str, error: str, message: str) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(WORLD, with_replicas, replicas, timeout=20)
    for rank in range(WORLD):
        failure = caught.value.failures[rank]
        assert failure.type == error
        assert message in failure.message


def frozen() -> None:
    frozen, trained = nn.Parameter(torch.ones(6, 4), requires_grad=False), nn.Parameter(torch.ones(6, 4))
    optimizer = Dion(
        [("frozen", frozen), ("trained", trained)], replicas=dist.group.WORLD, sync_gradients=True, **Dion.PAPER
    )
    trained.grad = torch.randn(6, 4)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(6, 4))
    assert not torch.equal(trained, torch.ones(6, 4))


def test_a_frozen_parameter_stays_as_it_is(ranks: Pool) -> None:
    ranks.run(2, frozen)


def copied() -> None:
    copy.deepcopy(Dion([nn.Parameter(torch.ones(2, 2))], replicas=dist.group.WORLD))


def test_a_copy_with_process_groups_is_refused(ranks: Pool) -> None:
    with pytest.raises(RankError, match="cannot be copied or pickled with replicas"):
        ranks.run(2, copied)
