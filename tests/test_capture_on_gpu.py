"""Whole steps in a CUDA graph, where there is a device for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.test_capture import CASES, content, optimizer_of, set_rates, write_gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def captured(step: Callable[[], Any], *, warm_up: int) -> torch.cuda.CUDAGraph:
    """Return a graph of a step, before which some steps are taken as usual."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_replays_are_steps(case: str, dtype: torch.dtype) -> None:
    results = []
    for in_graph in (True, False):
        params, optimizer = optimizer_of(case, dtype, device="cuda")
        write_gradients(params, 0)
        set_rates(optimizer, 0)
        if in_graph:
            graph = captured(optimizer.step, warm_up=2)
        else:
            optimizer.step()
            optimizer.step()
        for step in range(1, 5):
            write_gradients(params, step, bad=step == 3)
            set_rates(optimizer, step)
            graph.replay() if in_graph else optimizer.step()
        results.append(content(params, optimizer))
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for place, (a, b) in enumerate(zip(*results, strict=True)):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m, n=place: f"{case}, tensor {n}: {m}")
    assert optimizer.skipped_steps == 1
