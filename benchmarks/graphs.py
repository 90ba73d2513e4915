"""CUDA graphs of optimizer steps."""

from collections.abc import Callable
from typing import Any

import torch


def captured(step: Callable[[], Any], *, warm_up: int = 3) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of a step, which `replay()` takes again on the memory of the gradients as they lie now.

    Args:
        step: of a capturable optimizer.
        warm_up: how many steps are taken before, which make the state; the capture itself takes none.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
