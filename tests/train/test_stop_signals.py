"""Ctrl-C, SIGTERM and SIGHUP at any time: real processes, and a real terminal that goes away."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orthon.train.commands.main import main

SIGNALLED = Path(__file__).parent / "support" / "signalled_trainer.py"
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
SAID = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated"), "SIGHUP": (129, "hung up")}


def signalled(when: str, name: str, *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SIGNALLED, when, name, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT)


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("carry_out", "SIGTERM"),
        ("load_corpus", "SIGTERM"),
        ("load_corpus", "SIGHUP"),
        ("load_corpus", "SIGINT"),
        ("build_model", "SIGTERM"),
        pytest.param("carry_out", "SIGHUP", marks=pytest.mark.long),
        pytest.param("carry_out", "SIGINT", marks=pytest.mark.long),
        pytest.param("build_model", "SIGHUP", marks=pytest.mark.long),
    ],
)
def test_in_set_up(tmp_path: Path, tiny: list[str], when: str, name: str) -> None:
    """One line, the code of a shell, and no trace."""
    ended = signalled(when, name, "train", *tiny, f"--out={tmp_path / 'deep' / 'run'}")
    code, word = SAID[name]
    assert (ended.returncode, ended.stderr) == (code, f"orthon: {word}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("when", "name"),
    [("generate", "SIGTERM"), pytest.param("write_summary", "SIGHUP", marks=pytest.mark.long)],
)
def test_after_the_last_step(tmp_path: Path, tiny: list[str], when: str, name: str) -> None:
    """The run is not complete, and does not say so; a second start writes the results."""
    run = tmp_path / "run"
    ended = signalled(when, name, "train", *tiny, f"--out={run}")
    code, word = SAID[name]
    assert (ended.returncode, ended.stderr) == (code, f"orthon: {word}\n")
    assert not (run / "summary.json").exists()
    assert not (run / "run.lock").exists()
    assert main(["train", f"--resume={run}"]) == 0
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("part", ["libc10", "libtorch_cpu", "libtorch_python"])
@pytest.mark.parametrize("script", [True, False])
def test_while_torch_is_imported(tmp_path: Path, part: str, script: bool) -> None:
    entry = tmp_path / "orthon"
    entry.write_text("from orthon.train.commands.main import main\nmain()\n")
    command = [sys.executable, *([str(entry)] if script else ["-m", "orthon"]), "train"]
    # In the background SIGINT may be ignored, also for the processes that are started there.
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=heed_ctrl_c
    ) as process:
        try:
            while process.poll() is None and part not in Path(f"/proc/{process.pid}/maps").read_text():
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, complaints) == (130, "orthon: interrupted\n")


def heed_ctrl_c() -> None:
    """Have SIGINT end this process, as usual."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_before_the_first_step_of_a_run_that_goes_on(tmp_path: Path, tiny: list[str], snapshot) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, "--steps=2", f"--out={run}"]) == 0
    before = snapshot(run)
    ended = signalled("newest_checkpoint", "SIGTERM", "train", f"--resume={run}", "--steps=4")
    assert (ended.returncode, ended.stderr) == (143, "orthon: terminated\n")
    assert snapshot(run) == before
    assert main(["train", f"--resume={run}", "--steps=4"]) == 0


@pytest.mark.parametrize("when", ["load_corpus", pytest.param("carry_out", marks=pytest.mark.long)])
def test_one_of_many_ranks_in_set_up(tmp_path: Path, tiny: list[str], when: str) -> None:
    """That rank says which signal. None hangs, and torchrun lists the exit codes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["train", *tiny, "--model.kv-heads=2", f"--out={tmp_path / 'run'}"]
    command = [*launcher, SIGNALLED, when, "SIGTERM", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT)
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert "orthon: terminated" in lines
    assert set(re.findall(r"exitcode +: (\S+)", ended.stderr)) <= {"143", "1", "-15"}
    assert not (tmp_path / "run").exists()


def test_nohup_is_heeded(tmp_path: Path, tiny: list[str], numbers) -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "orthon", "train", *tiny, f"--out={tmp_path / 'run'}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("4/40"):
            process.send_signal(signal.SIGHUP)
            break
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert len(numbers(tmp_path / "run")) == 40


# A process of a new session takes the terminal that is its stdin, and becomes the trainer.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "orthon", *sys.argv[1:]])
"""


@pytest.mark.parametrize("steps", [40, pytest.param(400, marks=pytest.mark.long)])
def test_the_terminal_goes_away(tmp_path: Path, tiny: list[str], numbers, steps: int) -> None:
    """The kernel sends SIGHUP, and nothing can be written to the terminal any more."""
    run = tmp_path / "run"
    words = [*tiny, f"--steps={steps}", "--save-every=10000", f"--out={run}"]
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, "train", *words],
        stdin=side,
        stdout=side,
        stderr=side,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    os.close(side)
    said = b""
    while b"loss" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(timeout=60) == 0, said
    done = len(numbers(run))
    assert 1 <= done < steps
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    assert not (run / "summary.json").exists()
    assert main(["train", f"--resume={run}"]) == 0
    assert len(numbers(run)) == steps
