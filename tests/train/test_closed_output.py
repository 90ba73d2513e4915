"""Output that nobody reads, that is closed, or that the disk has no room for: real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def shell(line: str, *words: object) -> "subprocess.CompletedProcess[str]":
    """Carry out a line of bash, in which "$@" are the words."""
    command = ["bash", "-o", "pipefail", "-c", line, "bash", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


def orthon(*words: object) -> list[object]:
    return [sys.executable, "-m", "orthon", *words]


NO_ROOM = "orthon: the output could not be written: No space left on device\n"


@pytest.mark.parametrize(
    ("line", "complaints"),
    [
        ('"$@" | head -1', ""),
        ('"$@" 2>&1 | true', ""),
        ('"$@" >&-', ""),
        ('"$@" > /dev/full', NO_ROOM),
        pytest.param('PYTHONUNBUFFERED=1 "$@" | head -1', "", marks=pytest.mark.long),
        pytest.param('PYTHONUNBUFFERED=1 "$@" > /dev/full', NO_ROOM, marks=pytest.mark.long),
        pytest.param('"$@" <&- >&- 2>&-', "", marks=pytest.mark.long),
        pytest.param('"$@" > /dev/full 2>&1', "", marks=pytest.mark.long),
    ],
)
def test_a_training_goes_on(tmp_path: Path, tiny: list[str], numbers, line: str, complaints: str) -> None:
    run = tmp_path / "run"
    ended = shell(line, *orthon("train", *tiny, f"--out={run}"))
    assert (ended.returncode, ended.stderr) == (0, complaints)
    assert len(numbers(run)) == 40
    assert (run / "summary.json").exists()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000040"]


@pytest.mark.parametrize("launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")])
def test_a_training_that_fails_does_not_succeed(tmp_path: Path, tiny: list[str], launcher: tuple[str, ...]) -> None:
    words = [*tiny, "--model.kv-heads=2", "--optimizer.name=adamw", "--optimizer.lr=1e30"]
    command = [sys.executable, *launcher, "-m", "orthon", "train", *words, f"--out={tmp_path / 'run'}"]
    ended = shell('"$@" | true', *command)
    assert ended.returncode == 1
    assert "orthon: the loss of step" in ended.stderr
    assert "Broken pipe" not in ended.stderr


@pytest.mark.long
def test_many_ranks_go_on(tmp_path: Path, tiny: list[str], numbers) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    words = [*tiny, "--model.kv-heads=2", f"--out={tmp_path / 'run'}"]
    ended = shell('"$@" | head -1', sys.executable, *launcher, "-m", "orthon", "train", *words)
    assert ended.returncode == 0, ended.stderr
    assert "Broken pipe" not in ended.stderr
    assert len(numbers(tmp_path / "run")) == 40


@pytest.mark.parametrize(
    ("line", "words", "code", "complaints"),
    [
        ('"$@" | true', ["plan", "--help"], 0, ""),
        ('"$@" > /dev/full', ["plan", "--help"], 2, NO_ROOM),
        ('"$@" > /dev/full', ["train", "--help"], 2, NO_ROOM),
        pytest.param('"$@" > /dev/full', ["compare", "--help-all"], 2, NO_ROOM, marks=pytest.mark.long),
        pytest.param('"$@" 2>&1 | true', ["fly"], 2, "", marks=pytest.mark.long),
        pytest.param('"$@" > /dev/full', ["fly"], 2, "orthon: Unknown command", marks=pytest.mark.long),
    ],
)
def test_commands_whose_output_is_all(line: str, words: list[str], code: int, complaints: str) -> None:
    """A reader that goes away has read what it wanted. A full disk is a failure."""
    ended = shell(line, *orthon(*words))
    assert ended.returncode == code
    assert ended.stderr.startswith(complaints)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii:strict"},
        {"MPLBACKEND": "module://of_a_notebook", "COLUMNS": "0"},
        pytest.param({"WORLD_SIZE": "x", "RANK": "y"}, marks=pytest.mark.long),
        pytest.param({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.long),
        pytest.param({"PYTHONIOENCODING": "utf-8:strict"}, marks=pytest.mark.long),
    ],
)
def test_odd_surroundings(tmp_path: Path, tiny: list[str], variables: dict[str, str]) -> None:
    """The sample has a mark that is not ASCII, and the folder a name that is no text."""
    run = os.fsdecode(bytes(tmp_path) + b"/run\xff\xc3\xa9")
    ended = subprocess.run(
        [*map(str, orthon("train", *tiny, f"--out={run}"))],
        capture_output=True,
        timeout=200,
        env={**ENVIRONMENT, **variables},
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"results in " in ended.stdout
