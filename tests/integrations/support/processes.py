"""Programs on two real processes, which torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

PROCESSES = 2
ROOT = Path(__file__).parents[3]


def run(module: str, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Run a module of this package as a program, and return what each of its processes has left in the folder."""
    launch(f"support.{module}", str(folder), *words)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def launch(module: str, *words: str, processes: int = PROCESSES) -> str:
    """Run a module of these tests as a program, and return its output.

    Raises:
        AssertionError: if it does not end with exit code 0.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launcher, "-m", f"tests.integrations.{module}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return done.stdout


def leave(folder: Path, result: dict[str, Any]) -> NoReturn:
    """Leave what this process has found, and end together."""
    torch.save(result, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    end()


def end() -> NoReturn:
    """End this process at once. As Python ends by itself, threads of gloo may abort it (PyTorch #190489)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's weights by their plain names, put together from shards. All processes call it."""
    whole = {}
    for name, value in model.state_dict().items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        whole[name.removeprefix("module.")] = value.detach().clone()
    return whole
