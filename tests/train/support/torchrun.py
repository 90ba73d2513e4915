"""Commands of orthon under torchrun: real processes."""

import os
import re
import subprocess
import sys


def start(processes: int, *words: object) -> "subprocess.Popen[str]":
    """Start a command in some processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*launcher, "-m", "orthon", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def torchrun(processes: int, *words: object) -> str:
    """Carry out a command that succeeds, and return its output."""
    process = start(processes, *words)
    said, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, complaints
    assert "Warning" not in complaints
    return said


def complaint(processes: int, *words: object) -> str:
    """Carry out a command that fails, and return its one line about that. torchrun's output ends with the same line."""
    process = start(processes, *words)
    _, complaints = process.communicate(timeout=200)
    assert process.returncode == 1  # torchrun's own; it lists those of the processes
    # It ends the processes that still run: by the signal, or, where they are already set up, with the code for it.
    assert set(re.findall(r"exitcode +: (\S+)", complaints)) <= {"2", "-15", "143"}
    [line] = [line for line in complaints.splitlines() if line.startswith("orthon: ")]
    *_, last, ruler = complaints.splitlines()
    assert set(ruler) == {"="}
    assert last == f"  {line}"
    return line


def mesh(sizes: tuple[int, int, int]) -> list[str]:
    """The flags for dp_replicate, dp_shard and tp."""
    names = ("dp-replicate", "dp-shard", "tp")
    return [f"--mesh.{name}={size}" for name, size in zip(names, sizes, strict=True)]
