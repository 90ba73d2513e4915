"""State on ranks: how it lies, in which dtype, and that it moves between layouts."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orthon import Dion
from orthon.testing import Pool, RankError, layouts
from tests.support.sampling import crossed

WORLD = 4
SHAPES = {"wide": (12, 20), "tall": (20, 12), "uneven": (13, 9)}
ON = ["fsdp 0", "fsdp 1", "hsdp", "fsdp x tp same dim", "fsdp x tp other dim", "ddp"]


def start(name: str) -> Tensor:
    return torch.randn(*SHAPES[name], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient(name: str, step: int) -> Tensor:
    return torch.randn(*SHAPES[name], generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def optimizer_on(layout: str | None, dtype: torch.dtype = torch.float64, **options: Any) -> Dion:
    """Return an optimizer of matrices that lie so, or that are whole."""
    world = dist.get_world_size()
    params = []
    for name in SHAPES:
        whole = start(name).to(dtype)
        params.append((name, nn.Parameter(layouts.build(layout, world, whole) if layout else whole)))
    if layout == "ddp":
        options["replicas"] = dist.group.WORLD
    return Dion(params, lr=0.1, **options)


def train(optimizer: Dion, layout: str | None, steps: range) -> list[Tensor]:
    params = optimizer.param_groups[0]["params"]
    for step in steps:
        for name, param in zip(SHAPES, params, strict=True):
            whole = gradient(name, step).to(param.dtype)
            param.grad = layouts.build(layout, dist.get_world_size(), whole) if layout else whole
        optimizer.step()
    return [layouts.local(param.detach()) for param in params]


def parts(layout: str, whole: list[Tensor]) -> list[Tensor]:
    """Return what this rank holds of whole matrices."""
    world, rank = dist.get_world_size(), dist.get_rank()
    held = [layouts.parts(layout, world, tuple(x.shape))[rank] for x in whole]
    return [x[rows][:, cols] for x, (rows, cols) in zip(whole, held, strict=True)]


def move(layout: str) -> None:
    """Go from one process to the layout and back, and train on there and in one process alike."""
    alone, there, back = optimizer_on(None), optimizer_on(layout), optimizer_on(None)
    train(alone, None, range(3))
    world = dist.get_world_size()
    for param, whole in zip(there.param_groups[0]["params"], alone.param_groups[0]["params"], strict=True):
        layouts.local(param.data).copy_(layouts.local(layouts.build(layout, world, whole.data)))
    train(there, layout, range(1))  # a state to be replaced
    for param, whole in zip(there.param_groups[0]["params"], alone.param_groups[0]["params"], strict=True):
        layouts.local(param.data).copy_(layouts.local(layouts.build(layout, world, whole.data)))
    there.load_state_dict(alone.state_dict())
    for param in there.param_groups[0]["params"]:
        for value in there.state[param].values():
            assert isinstance(value, DTensor) == isinstance(param, DTensor)
    expected = train(alone, None, range(3, 6))
    moved = train(there, layout, range(3, 6))
    for new, right, name in zip(moved, parts(layout, expected), SHAPES, strict=True):
        torch.testing.assert_close(new, right, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    back.load_state_dict(there.state_dict())
    for ours, theirs in zip(back.state.values(), alone.state.values(), strict=True):
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("layout", ON)
def test_state_moves_between_layouts(ranks: Pool, layout: str) -> None:
    ranks.run(WORLD, move, layout)


def wrong_state() -> None:
    there = optimizer_on("fsdp 0")
    state = train_and_save()
    state["state"][0]["Q"] = torch.zeros(3, 3)
    there.load_state_dict(state)


def train_and_save() -> dict[str, Any]:
    alone = optimizer_on(None)
    train(alone, None, range(1))
    return alone.state_dict()


def test_state_of_another_shape_is_refused(ranks: Pool) -> None:
    with pytest.raises(RankError, match="'wide': shape of 'Q' should be") as caught:
        ranks.run(WORLD, wrong_state)
    assert sorted(caught.value.failures) == list(range(WORLD))


def sizes(layout: str, rank_fraction: float) -> list[int]:
    """Return the numbers that this rank keeps of M and Q of a square matrix."""
    world = dist.get_world_size()
    param = nn.Parameter(layouts.build(layout, world, torch.zeros(64, 64)))
    param.grad = layouts.build(layout, world, torch.ones(64, 64))
    optimizer = Dion([("w", param)], rank_fraction=rank_fraction)
    optimizer.step()
    return [layouts.local(optimizer.state[param][key]).numel() for key in ("momentum", "Q")]


@pytest.mark.parametrize(
    ("layout", "rank_fraction", "expected"),
    [
        ("fsdp 0", 0.25, [16 * 64, 64 * 16]),  # whole on every rank: not more than the momentum
        ("fsdp 0", 0.5, [16 * 64, 16 * 32]),  # spread
        ("fsdp 1", 0.5, [64 * 16, 16 * 32]),  # as its own rows are
        ("fsdp x tp other dim", 0.5, [32 * 32, 32 * 32]),
        ("fsdp x tp other dim", 1.0, [32 * 32, 16 * 64]),
    ],
)
def test_state_is_never_more_than_twice_the_momentum(
    ranks: Pool, layout: str, rank_fraction: float, expected: list[int]
) -> None:
    for found in ranks.run(WORLD, sizes, layout, rank_fraction):
        assert found == expected


def sixteen_bits(layout: str, weights: torch.dtype, state: torch.dtype | None) -> list[float]:
    """Return the relative errors of the whole update, beside those of one process in the same dtypes."""
    exact = train(optimizer_on(None), None, range(5))
    one = train(optimizer_on(None, weights, state_dtype=state), None, range(5))
    many = train(optimizer_on(layout, weights, state_dtype=state), layout, range(5))
    errors = []
    for x, y, z, name in zip(parts(layout, exact), parts(layout, one), many, SHAPES, strict=True):
        whole = (exact[list(SHAPES).index(name)] - start(name)).norm()
        errors += [((y.double() - x).norm() / whole).item(), ((z.double() - x).norm() / whole).item()]
    return errors


SIXTEEN_BITS = [
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, None),
]


@pytest.mark.parametrize(
    ("weights", "state", "layout"), crossed(SIXTEEN_BITS, ["fsdp 0", "fsdp x tp other dim", "ddp"], every=2)
)
def test_rounding_to_16_bits_is_no_worse_than_in_one_process(
    ranks: Pool, layout: str, weights: torch.dtype, state: torch.dtype | None
) -> None:
    for errors in ranks.run(WORLD, sixteen_bits, layout, weights, state):
        for one, many in zip(errors[::2], errors[1::2], strict=True):
            assert many <= 1.5 * one + 1e-2, f"relative error {many:.1e}, but {one:.1e} in one process"
