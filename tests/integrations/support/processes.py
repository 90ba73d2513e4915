"""Programs on two real processes, which torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

PROCESSES = 2


def run(module: str, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Run a module of this package as a program, and return what each of its processes has left in the folder."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run(
        [*launcher, "-m", f"tests.integrations.support.{module}", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def leave(folder: Path, result: dict[str, Any]) -> None:
    """Leave what this process has found, and end together."""
    torch.save(result, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's weights by their plain names, put together from shards. All processes call it."""
    whole = {}
    for name, value in model.state_dict().items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        whole[name.removeprefix("module.")] = value.detach().clone()
    return whole
