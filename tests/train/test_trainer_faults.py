"""A run whose processes are killed, that gets signals, and whose disk is full: each for real."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orthon.train.checkpoints.newest import newest_checkpoint
from orthon.train.commands.main import main
from orthon.train.errors import TrainingError
from orthon.train.processes.launch import of_lost_process
from orthon.train.processes.ranks import Processes

FAULTY = Path(__file__).parent / "support" / "faulty_trainer.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2")


@pytest.fixture(scope="module")
def words(tiny: list[str]) -> list[str]:
    """Flags of a tiny run that two ranks can share, with checkpoints of steps 4, 8 and 12."""
    return [*tiny, "--model.kv-heads=2", "--steps=12", "--save-every=4", "--validate-every=6"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """The run in one process, without a fault."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", *words, f"--out={directory}"]) == 0
    return directory


def suffer(fault: str, step: int, rank: int, place: Path, *words: object, launcher: tuple[str, ...] = ()):
    """Carry out a command that meets a fault."""
    return subprocess.run(
        [sys.executable, *launcher, FAULTY, fault, str(step), str(rank), place, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def steps(run: Path) -> list[int]:
    """Those of the checkpoints; the newest is whole, and nothing else lies there."""
    said: list[str] = []
    newest = newest_checkpoint(run, Processes(torch.device("cpu")), said.append)
    assert not said
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert newest is not None
    assert newest.path.name == names[-1]
    return [int(name.removeprefix("step-")) for name in names]


def assert_same_curve(run: Path, whole: Path, numbers) -> None:
    for one, other in zip(numbers(run), numbers(whole), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize(
    ("fault", "rank"),
    [
        ("kill in save", 0),
        pytest.param("kill in save", 1, marks=pytest.mark.long),
        pytest.param("kill in step", 0, marks=pytest.mark.long),
        pytest.param("kill in step", 1, marks=pytest.mark.long),
    ],
)
def test_one_rank_is_killed(tmp_path: Path, words: list[str], whole: Path, numbers, fault: str, rank: int) -> None:
    """torchrun starts all of them again with the same words, and they go on from the newest whole checkpoint."""
    run = tmp_path / "run"
    command = ["train", *words, "--mesh.dp-shard=2", "--resume=auto", f"--out={run}"]
    ended = suffer(fault, 8, rank, tmp_path / "happened", *command, launcher=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    complaints = [line for line in ended.stderr.splitlines() if line.startswith("orthon: ")]
    assert all(f"rank {1 - rank}: another process of the run has ended: " in line for line in complaints)
    assert len(complaints) <= 1  # torchrun may be faster
    assert "Traceback" not in ended.stderr
    # A kill in the step after a checkpoint may still find it being written.
    assert "12 steps from step 4" in ended.stdout or (fault == "kill in step" and "from step 8" in ended.stdout)
    assert_same_curve(run, whole, numbers)
    assert steps(run) == [8, 12]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"), True),
        (RuntimeError("[/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"), True),
        (dist.DistNetworkError("connection reset by peer"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (TrainingError("gloo/transport/ in the name of a file"), False),
        (NotImplementedError("gloo/transport/"), False),
    ],
)
def test_errors_that_mean_a_lost_process(error: RuntimeError, expected: bool) -> None:
    assert of_lost_process(error) == expected


@pytest.mark.parametrize("fault", ["SIGTERM in save", pytest.param("SIGINT in save", marks=pytest.mark.long)])
def test_a_signal_during_a_save(tmp_path: Path, words: list[str], whole: Path, numbers, fault: str) -> None:
    run = tmp_path / "run"
    ended = suffer(fault, 4, 0, tmp_path / "happened", "train", *words, f"--out={run}")
    assert ended.returncode == 0, ended.stderr
    assert f"go on with: orthon train --resume {run}" in ended.stdout
    done = len(numbers(run))
    assert 4 < done < 12
    assert steps(run) == [4, done]
    assert main(["train", f"--resume={run}"]) == 0
    assert numbers(run) == numbers(whole)


@pytest.mark.long
def test_a_signal_to_one_of_many_during_a_save(tmp_path: Path, words: list[str], whole: Path, numbers) -> None:
    run = tmp_path / "run"
    command = ["train", *words, "--mesh.dp-shard=2", f"--out={run}"]
    ended = suffer("SIGTERM in save", 4, 1, tmp_path / "happened", *command, launcher=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    assert "stopped after step" in ended.stdout
    assert steps(run) == [4, len(numbers(run))]
    assert main(["train", f"--resume={run}", "--mesh.dp-shard=1"]) == 0
    assert_same_curve(run, whole, numbers)


@pytest.mark.long
def test_ctrl_c_twice_leaves_a_whole_checkpoint(tmp_path: Path, words: list[str]) -> None:
    run = tmp_path / "run"
    ended = suffer("SIGINT twice in save", 4, 0, tmp_path / "happened", "train", *words, f"--out={run}")
    assert (ended.returncode, ended.stderr) == (130, "orthon: interrupted\n")
    assert steps(run) == [4]


@pytest.fixture
def full(tmp_path: Path, whole: Path) -> Iterator[str]:
    """How the disk becomes full: it is one of 4 MB where the system lets us make one, else files cannot grow."""
    disk = tmp_path / "run" / "checkpoints"
    disk.mkdir(parents=True)
    shutil.copy(whole / "config.yaml", disk.parent)  # of a run that has begun
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True)
    if mounted.returncode:
        yield "limited files"
        return
    yield "full disk"
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("step", [8, pytest.param(12, marks=pytest.mark.long)])
def test_the_disk_is_full(tmp_path: Path, words: list[str], whole: Path, numbers, full: str, step: int) -> None:
    """One checkpoint that fails is said, and training goes on; if it is the last one, the run has failed."""
    run = tmp_path / "run"
    command = ["train", *words, "--resume=auto", f"--out={run}"]
    ended = suffer(full, step, 0, run / "checkpoints", *command)
    said = f"checkpoint {run}/checkpoints/step-{step:08d} could not be written: "
    assert "Traceback" not in ended.stderr
    if step == 8:
        assert ended.returncode == 0, ended.stderr
        [line] = [line for line in ended.stdout.splitlines() if line.startswith(said)]
        assert line.endswith("; the ones before it stay, and training goes on")
        assert steps(run) == [4, 12]
    else:
        assert ended.returncode == 1
        [line] = ended.stderr.splitlines()
        assert line.startswith(f"orthon: {said}")
        assert line.endswith(", and it was the last one of the run")
        (run / "checkpoints" / "ballast").unlink(missing_ok=True)
        assert steps(run) == [4, 8]
        assert main(command) == 0
    assert numbers(run) == numbers(whole)
