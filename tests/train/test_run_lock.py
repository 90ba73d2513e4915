"""One command at a time works in a directory. Real processes hold the lock, die with it, and fork."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from orthon.train.commands.main import main
from orthon.train.errors import UserError
from orthon.train.processes.lock import Lock, alone_in
from orthon.train.processes.ranks import Processes

ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

# Holds the lock of a directory, and may fork a child that does not end.
HOLD = """
import os, sys, time
from pathlib import Path
from orthon.train.processes.lock import Lock
lock = Lock(Path(sys.argv[1]), print)
child = os.fork() if sys.argv[2] == "fork" else 0
if child or sys.argv[2] != "fork":
    print(child, flush=True)
time.sleep(100)
"""


def unsaid(line: str) -> None:
    raise AssertionError(line)


@contextmanager
def holder(directory: Path, how: str = "") -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A process that holds a lock, and the number of its child or 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, directory, how], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process, child
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if child:
            os.kill(child, signal.SIGKILL)


def in_midst(*words: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """A training that has done its first step."""
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "orthon", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert any(re.match(r"\d+/\d+ ", line) for line in process.stdout)
    return process


@pytest.mark.parametrize("launcher", [(), pytest.param(TORCHRUN, marks=pytest.mark.long)])
def test_a_second_process(tmp_path: Path, tiny: list[str], fails, snapshot, launcher: tuple[str, ...]) -> None:
    """It says who holds the directory, ends with 2, and changes nothing; the kernel frees the lock of the dead."""
    run = tmp_path / "run"
    words = ["train", *tiny, "--model.kv-heads=2", "--resume=auto", f"--out={run}"]
    first = in_midst(*words, "--steps=100000", launcher=launcher)
    first.send_signal(signal.SIGSTOP)
    before = snapshot(run)
    pattern = rf"orthon: {run} is in use by process \d+ on \S+ since \S+, and only one may write into it; .*--out\n"
    others = [
        words,
        ["train", f"--resume={run}"],
        ["train", *tiny, f"--out={run}"],
        ["compare", *tiny, f"--out={run}"],
    ]
    if not launcher:
        for other in others:
            assert re.fullmatch(pattern, fails(*other))
        assert snapshot(run) == before
        assert f"process {first.pid} on " in fails(*words)
        first.kill()
    else:
        assert re.fullmatch(pattern, fails(*words))
        first.send_signal(signal.SIGCONT)
        first.terminate()
    first.communicate(timeout=60)
    done = (run / "metrics.jsonl").read_text().count("\n")
    assert main([*words, f"--steps={done + 2}"]) == 0
    assert not (run / "run.lock").exists()


def test_compare_keeps_its_runs_to_itself(tmp_path: Path, tiny: list[str], fails) -> None:
    words = ["compare", *tiny, "--optimizers", "adamw", f"--out={tmp_path}"]
    with holder(tmp_path):
        assert f"{tmp_path} is in use by process" in fails(*words)
    run = tmp_path / "adamw-lr0.003"
    with holder(run):
        assert f"{run} is in use by process" in fails(*words)
    assert main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {run.name, "comparison.md", "comparison.png"}


@pytest.mark.parametrize("how", ["", "fork"])
def test_the_lock_dies_with_its_holder(tmp_path: Path, how: str) -> None:
    """Also if the holder has forked a child that lives on."""
    run = tmp_path / "run"
    with holder(run, how) as (process, child):
        with pytest.raises(UserError, match=f"process {process.pid} on "):
            Lock(run, unsaid)
        process.kill()
        process.wait()
        assert (run / "run.lock").exists()
        if child:
            os.kill(child, 0)  # it lives
        Lock(run, unsaid).release()
    assert list(run.iterdir()) == []  # the first one has made it, and could not delete it


def test_of_many_that_start_at_once_one_gets_it(tmp_path: Path) -> None:
    """And each later one gets it in its turn, though the file is deleted and made anew all the time."""
    program = """
import sys, time
from pathlib import Path
from orthon.train.errors import UserError
from orthon.train.processes.lock import Lock
directory, mine = Path(sys.argv[1]), 0
end = time.monotonic() + 60
while mine < 50 and time.monotonic() < end:
    try:
        lock = Lock(directory, print)
    except UserError:
        continue
    marker = directory / "inside"
    marker.touch(exist_ok=False)  # fails if another one is inside
    marker.unlink()
    lock.release()
    mine += 1
print(mine)
"""
    command = [sys.executable, "-c", program, tmp_path / "deep" / "run"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(3)]
    assert [process.communicate(timeout=100)[0] for process in processes] == ["50\n"] * 3
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def link_to_file(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim)


def hard_link(lock: Path, victim: Path) -> None:
    os.link(victim, lock)


def dangling(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim.with_name("new"))


def pipe(lock: Path, victim: Path) -> None:
    os.mkfifo(lock)


def folder(lock: Path, victim: Path) -> None:
    lock.mkdir()


def notes(lock: Path, victim: Path) -> None:
    lock.write_text("my notes\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link_to_file, "is a symbolic link, which is not followed; delete it"),
        (dangling, "is a symbolic link, which is not followed; delete it"),
        (hard_link, "is not a plain file with one name; delete it"),
        (pipe, "is not a plain file with one name; delete it"),
        (folder, "Is a directory"),
        (notes, "is no lock of orthon's; move it away"),
    ],
)
def test_files_that_are_no_locks(
    tmp_path: Path, tiny: list[str], fails, snapshot, make: Callable[[Path, Path], None], message: str
) -> None:
    (tmp_path / "victim").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    make(run / "run.lock", tmp_path / "victim")
    before, names = snapshot(tmp_path), sorted(path.name for path in tmp_path.iterdir())
    said = fails("train", *tiny, f"--out={run}")
    assert f"{run / 'run.lock'}" in said
    assert message in said
    assert snapshot(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    "content", ["", "process 1 on host since 2026-01-01T00:00:00+00:00\n", "process 9999999999 on a.b-c since 1\n"]
)
def test_what_a_killed_process_has_left(tmp_path: Path, tiny: list[str], content: str) -> None:
    """It is no run yet, and no hindrance, also in a comparison."""
    for directory in (tmp_path, tmp_path / "adamw-lr0.003"):
        directory.mkdir(exist_ok=True)
        (directory / "run.lock").write_text(content)
    assert main(["compare", *tiny, "--steps=2", "--optimizers", "adamw", f"--out={tmp_path}"]) == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    said: list[str] = []
    with monkeypatch.context() as context:
        context.setattr(fcntl, "flock", refuse)
        with alone_in(tmp_path / "run", Processes(torch.device("cpu")), said.append):
            assert said == [
                f"{tmp_path / 'run' / 'run.lock'} cannot be locked (Operation not supported): "
                "see to it that no other process writes there"
            ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("held", [False, True])
def test_another_user(tmp_path: Path, held: bool) -> None:
    """A user who may not write the lock file of another heeds it; where nobody may write, there is nothing to lock."""
    program = """
import os, sys
from pathlib import Path
from orthon.train.errors import UserError
from orthon.train.processes.lock import Lock
os.setuid(65534)
try:
    Lock(Path(sys.argv[1]), print).release()
    print("free")
except UserError as error:
    print(error)
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    command = [sys.executable, "-c", program, tmp_path]

    def try_it() -> str:
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout

    if held:
        lock = Lock(tmp_path, unsaid)
        assert f"in use by process {os.getpid()} on" in try_it()
        lock.release()
    assert try_it() == "free\n"


def test_waiting_is_not_needed_after_a_kill(tmp_path: Path) -> None:
    """A job queue may start the next process as soon as it has seen the last one die."""
    for _ in range(3):
        with holder(tmp_path / "run") as (process, _child):
            process.kill()
            process.wait()
            begun = time.monotonic()
            Lock(tmp_path / "run", unsaid).release()
            assert time.monotonic() - begun < 1
