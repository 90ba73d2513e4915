"""Step times of optimizers on the same matrices, measured side by side.

Every optimizer is measured in turn with torch.optim.Muon, a step of the one and a step of the other, so that a drift of
the machine's speed meets both. (With all of them in turn, each would find its memory cold.) The first step, which
creates the state, is shown beside the median of all steps, itself included.

Run: python benchmarks/step_time.py [--threads 2] [--rounds 7]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from orthon import Dion, Dion2, Dion3, Muon, NorMuon
from orthon.linalg import polar

# The matrices of GPT-2 small: 12 layers, d = 768, as (fan_out, fan_in).
GPT2_SMALL = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
TINY = [(32, 32)] * 72

REFERENCE = "torch.optim.Muon"
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "Dion rank 1": lambda params: Dion(params, lr=0.01, rank_fraction=1.0),
    "Dion rank 1/4": lambda params: Dion(params, lr=0.01, rank_fraction=1 / 4),
    "Dion rank 1/16": lambda params: Dion(params, lr=0.01, rank_fraction=1 / 16),
    "Muon": lambda params: Muon(params, lr=0.01),
    "NorMuon": lambda params: NorMuon(params, lr=0.01),
    "Dion2 1/4": lambda params: Dion2(params, lr=0.01, fraction=1 / 4),
    "Dion3 1/4": lambda params: Dion3(params, lr=0.01, fraction=1 / 4),
    "torch.optim.AdamW fused": lambda params: torch.optim.AdamW(params, lr=0.001, fused=True),
    REFERENCE: lambda params: torch.optim.Muon(params, lr=0.01),
}


def parameters(shapes: list[tuple[int, int]]) -> list[nn.Parameter]:
    """Return random matrices of the given shapes with random gradients."""
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def measure(shapes: list[tuple[int, int]], rounds: int, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Return the seconds of each step of each optimizer; the first entries are first steps."""
    shared_grads: list[Tensor] = [p.grad for p in parameters(shapes) if p.grad is not None]
    optimizers = {}
    for name in names:
        params = [nn.Parameter(torch.randn_like(grad)) for grad in shared_grads]
        for param, grad in zip(params, shared_grads, strict=True):
            param.grad = grad
        optimizers[name] = OPTIMIZERS[name](params)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, shapes: list[tuple[int, int]], rounds: int) -> None:
    """Measure each optimizer in turn with the reference, and print a table."""
    print(f"\n{title}: {len(shapes)} matrices, median of {rounds} steps")
    print(f"{'optimizer':26}{'ms/step':>10}{'first ms':>10}{'µs/matrix':>11}{'/ Muon':>9}")
    for name in OPTIMIZERS:
        seconds = measure(shapes, rounds, (name, REFERENCE))
        median, reference = statistics.median(seconds[name]), statistics.median(seconds[REFERENCE])
        print(
            f"{name:26}{median * 1e3:10.2f}{seconds[name][0] * 1e3:10.2f}"
            f"{median / len(shapes) * 1e6:11.1f}{median / reference:9.3f}",
            flush=True,
        )


def report_polar_factors(shapes: list[tuple[int, int]]) -> None:
    """Print how far the singular values of polar factors are from 1: root mean square, on Gaussian matrices."""
    print("\nSingular values of polar factors in 5 steps, root mean square distance from 1")
    print(f"{'matrix':>12}{'Muon':>9}{'torch.optim.Muon':>18}")
    for m, n in shapes:
        G = torch.randn(m, n)
        ours = polar(G).float()
        torchs = _zeropower_via_newtonschulz(G, (3.4445, -4.775, 2.0315), 5, 1e-7).float()
        errors = [(torch.linalg.svdvals(O) - 1).square().mean().sqrt().item() for O in (ours, torchs)]
        print(f"{f'{m}×{n}':>12}{errors[0]:9.3f}{errors[1]:18.3f}")


def main() -> None:
    """Run both cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each optimizer (default: 7)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, float32")
    report("GPT-2 small", GPT2_SMALL, arguments.rounds)
    report("72 × 32×32", TINY, 20 * arguments.rounds)
    report_polar_factors(GPT2_SMALL[:4])


if __name__ == "__main__":
    main()
