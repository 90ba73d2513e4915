"""How matrices that are dealt to few of many ranks reach them and come back, with all ranks in one process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from orthon.sharding.line import Line
from orthon.sharding.ranks import Ranks
from orthon.sharding.requests import Exchange, Gather, Request
from orthon.sharding.stages import two_factors
from orthon.sharding.step import Step

K = 3


def all_ranks(sizes: tuple[int, ...]) -> list[Ranks]:
    """Return what each rank of a grid of these sizes knows of all."""
    grid = torch.arange(torch.Size(sizes).numel()).view(sizes)
    result = []
    for me in range(grid.numel()):
        place = [int(i) for i in torch.unravel_index(torch.tensor(me), sizes)]
        lines = []
        for axis in range(len(sizes)):
            along = grid[tuple(slice(None) if a == axis else place[a] for a in range(len(sizes)))]
            lines.append(Line(along.tolist(), me, None))  # type: ignore[arg-type]
        result.append(Ranks(range(grid.numel()), lines))
    return result


def run_together(steps: list[Step[Any]]) -> list[Any]:
    """Run the step of each rank; return what each ends with. All must ask for the same at the same time."""
    answers: list[Tensor | None] = [None] * len(steps)
    while True:
        requests: list[Request] = []
        results = []
        for step, answer in zip(steps, answers, strict=True):
            try:
                requests.append(step.send(answer))
            except StopIteration as end:
                results.append(end.value)
        if results:
            assert not requests, "some ranks end before the others"
            return results
        given = [request.taken() for request in requests]
        for rank, request in enumerate(requests):
            others = request.line.ranks
            assert {type(requests[other]) for other in others} == {type(request)}
            if isinstance(request, Gather):
                answers[rank] = torch.stack([given[other] for other in others])
                continue
            assert isinstance(request, Exchange)
            parts = []
            for i, other in enumerate(others):
                theirs = requests[other]
                assert isinstance(theirs, Exchange)
                me = theirs.line.ranks.index(rank)
                part = given[other][sum(theirs.lengths[:me]) : sum(theirs.lengths[: me + 1])]
                assert part.numel() == request.expected[i]
                parts.append(part)
            answers[rank] = torch.cat(parts)


def reduced(ranks: Ranks, count: int, turn: int) -> Step[tuple[slice, Tensor, Tensor]]:
    x = torch.arange(count * K, dtype=torch.float64).view(count, K) * (1 + ranks.index)
    mine = ranks.mine(count, turn=turn)
    combine: Callable[[Tensor], Tensor] = lambda parts: parts.sum(0)  # noqa: E731
    part = yield from ranks.reduce_matrices(x, combine, turn=turn)
    whole = yield from ranks.gather_matrices(part, count, turn=turn)
    return mine, part, whole


@pytest.mark.parametrize("sizes", [(16,), (64,), (7,), (2, 18), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 7, 20, 64])
@pytest.mark.parametrize("turn", [0, 5])
def test_matrices_come_together_and_back(sizes: tuple[int, ...], count: int, turn: int) -> None:
    everyone = all_ranks(sizes)
    ends = run_together([reduced(ranks, count, turn) for ranks in everyone])
    n = len(everyone)
    expected = torch.arange(count * K, dtype=torch.float64).view(count, K) * (n * (n + 1) / 2)
    dealt = []
    for mine, part, whole in ends:
        dealt += range(count)[mine]
        assert torch.equal(part, expected[mine])
        assert torch.equal(whole, expected)
    assert dealt == list(range(count))


@pytest.mark.parametrize("size", [16, 64, 100, 512, 4096])
@pytest.mark.parametrize("count", [1, 7])
def test_few_matrices_do_not_load_one_rank_with_the_parts_of_all(size: int, count: int) -> None:
    far, near = two_factors(size)
    lines = [Line(range(size), me, None) for me in range(size)]  # type: ignore[arg-type]
    for me in (0, 1, near, size - 1):
        stages = Ranks(range(size), [lines[me]])._stages(count, 0)
        received = sum(len(stage._counts) * stage._mine for stage in stages)
        assert received <= min(size, 2 * (far * -(-count // far) + near))


@pytest.mark.parametrize("size", [1, 2, 7, 12, 64, 4096])
def test_two_factors(size: int) -> None:
    a, b = two_factors(size)
    assert a * b == size
    assert a <= b
    assert not any(size % k == 0 for k in range(a + 1, b) if k * k <= size)
