"""Steps as CUDA graphs: the host launches one graph instead of every kernel."""

import statistics
from typing import Any

import torch

from benchmarks import checks
from benchmarks.cases import Case, parameters
from benchmarks.contenders import Contender
from benchmarks.results import reason
from benchmarks.timing import in_a_row


def captured(
    contender: Contender, case: Case, *, dtype: torch.dtype, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Return the times of a step, launched kernel by kernel and as a graph, or why it cannot be captured.

    A replay is checked against float64, as steps are.

    Args:
        contender: the optimizer.
        case: what it updates.
        dtype: of weights and state.
        device: where.
        seconds: for each of the two.
    """
    line: dict[str, Any] = {"case": case.name, "contender": contender.name}
    if device.type != "cuda":
        return {**line, "note": "graphs need a GPU"}
    if contender.graph_options is None:
        return {**line, "note": "has no options for it"}
    params = parameters(case, dtype=dtype, device=device)
    optimizer = contender.optimizer(params, **contender.graph_options)
    for group in optimizer.param_groups:  # large steps, as the check needs them; a graph keeps the numbers it has seen
        group["lr"], group["weight_decay"] = 1.0, 0.1
    # Warmed up on a stream of its own, where capture will be: what is made once must not be made within.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream(device).wait_stream(stream)
    eager = statistics.median(in_a_row([optimizer.step], device, repeats=50, seconds=seconds))
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            optimizer.step()
    except Exception as error:  # a step that waits for the device; which one, torch says in many types
        return {**line, "eager_ms": eager * 1e3, "note": _first_reason(error)}
    try:
        wrong = checks.check_step(contender, graph.replay, optimizer, params)
    except checks.WrongStepError as error:
        return {**line, "eager_ms": eager * 1e3, "note": f"a replay is wrong: {error}"}
    replayed = statistics.median(in_a_row([graph.replay], device, repeats=50, seconds=seconds))
    return {**line, "eager_ms": eager * 1e3, "graph_ms": replayed * 1e3, "error": wrong, "note": ""}


def _first_reason(error: BaseException) -> str:
    """Return the reason of the first of the errors: ending a broken capture raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    return reason(error)
