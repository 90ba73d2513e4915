"""Metrics and results for which the disk has no room: a real disk where one can be made, else files cannot grow."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orthon.train.commands.main import main
from orthon.train.results.appended_file import AppendedFile
from orthon.train.results.directory import named, replace_file

FAULTY = Path(__file__).parent / "support" / "faulty_trainer.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The run without a fault."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", *tiny, f"--out={directory}"]) == 0
    return directory


@pytest.fixture(params=["full disk", pytest.param("limited files", marks=pytest.mark.long)])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """The directory of a run, and how there comes to be no room in it."""
    run = tmp_path / "run"
    run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", run]
    if request.param == "limited files" or subprocess.run(mount, capture_output=True).returncode:
        yield run, "limited files"
        return
    yield run, "full disk"
    subprocess.run(["umount", run], check=True)


def suffer(fault: str, step: int, run: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, FAULTY, fault, str(step), "0", run, "train", *words, f"--out={run}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


def test_metrics_wait_for_room(tiny: list[str], whole: Path, disk: tuple[Path, str], numbers) -> None:
    """Each file is named once, and in the end nothing is missing."""
    run, fault = disk
    ended = suffer(f"{fault} for 30 steps", 5, run, *tiny)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    said = [line for line in ended.stdout.splitlines() if "cannot be written" in line]
    assert all(line.endswith("; training goes on, and new lines wait for room") for line in said)
    assert sum(line.startswith(f"{run / 'metrics.jsonl'} cannot be written: ") for line in said) == 1
    assert sum(line.startswith(f"{run / 'tensorboard' / 'events.out.tfevents.'}") for line in said) == 1
    assert len(said) == 2
    assert numbers(run) == numbers(whole)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train")] == list(range(1, 41))


def test_results_wait_for_the_next_start(tiny: list[str], whole: Path, disk: tuple[Path, str], numbers) -> None:
    run, fault = disk
    ended = suffer(f"{fault} at end", 0, run, *tiny)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"orthon: {run / 'sample.txt'}: ")
    assert line.endswith(f"all 40 steps are done and saved: orthon train --resume {run} writes the results")
    (run / "ballast").unlink(missing_ok=True)
    assert main(["train", f"--resume={run}"]) == 0
    assert numbers(run) == numbers(whole)
    assert (run / "sample.txt").read_text() == (whole / "sample.txt").read_text()


@pytest.mark.parametrize("left", [39, 0])
def test_a_run_whose_last_lines_are_lost(tmp_path: Path, whole: Path, left: int) -> None:
    """It is completed all the same; the loss on the held-out text is computed anew."""
    run = shutil.copytree(whole, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:left]))
    (run / "summary.json").unlink()
    assert main(["train", f"--resume={run}"]) == 0
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run, whole)]
    assert summaries[0]["val_loss"] == summaries[1]["val_loss"]


def test_a_full_disk_at_the_start(tiny: list[str], disk: tuple[Path, str]) -> None:
    """Nothing is trained yet: one line with the file's name."""
    run, fault = disk
    if fault != "full disk":
        pytest.skip("no disk can be made")
    with (run / "ballast.part").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    command = [sys.executable, "-m", "orthon", "train", *tiny, f"--out={run}"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (ended.returncode, ended.stderr) == (2, f"orthon: {run / 'config.yaml'}: No space left on device\n")


def test_a_file_has_whole_pieces_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file = AppendedFile(tmp_path / "lines", said.append)
    file.add(b"one\n")
    write = os.write

    def write_a_part(handle: int, content: bytes) -> int:
        if len(content) < 3:
            raise OSError(28, "No space left on device")
        return write(handle, content[:2])

    with monkeypatch.context() as context:
        context.setattr(os, "write", write_a_part)
        file.add(b"two\n")
        assert (tmp_path / "lines").read_bytes() == b"one\n"
        file.add(b"three\n")
    assert (tmp_path / "lines").read_bytes() == b"one\n"
    file.add(b"four\n")
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\nthree\nfour\n"
    [line] = said
    assert line.startswith(f"{tmp_path / 'lines'} cannot be written: No space left on device; ")


@pytest.mark.parametrize("kind", ["/dev/full", "link", "folder", "missing"])
def test_files_that_take_nothing(tmp_path: Path, kind: str) -> None:
    """One line, and no error."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "folder").mkdir()
    path = {"/dev/full": Path("/dev/full"), "missing": tmp_path / "missing" / "file"}.get(kind, tmp_path / kind)
    said: list[str] = []
    file = AppendedFile(path, said.append)
    for _ in range(3):
        file.add(b"a line\n")
    file.close()
    assert len(said) == 1
    assert said[0].startswith(f"{path} cannot be written: ")
    assert (tmp_path / "precious").read_text() == "mine"


def test_an_error_names_its_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        named(tmp_path / "file"),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
    assert caught.value.filename == str(tmp_path / "file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            replace_file(tmp_path / "config.yaml", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "config.yaml")
    assert not any(tmp_path.iterdir())
