import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from orthon.saving import SafeReader
from orthon.train.commands.main import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A tiny run of forty steps that nobody interrupted."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", *tiny, "--save-every=15", f"--out={directory}"]) == 0
    return directory


def saved_tensors(path: Path) -> dict[str, torch.Tensor]:
    reader = SafeReader(path)
    saved = reader.read_metadata().state_dict_metadata.items()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def test_a_run_learns_and_leaves_its_results(finished: Path, numbers) -> None:
    records = numbers(finished)
    assert [record["step"] for record in records] == list(range(1, 41))
    validated = {record["step"]: record["val_loss"] for record in records if "val_loss" in record}
    assert list(validated) == [10, 20, 30, 40]
    assert 5.4 < records[0]["loss"] < 5.8  # ln 256 = 5.55: nothing learnt yet
    assert validated[40] < 3.6
    assert set(records[9]) == {"step", "loss", "val_loss", "lr", "grad_norm"}
    assert records[1]["lr"] == pytest.approx(0.04)
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "▮" in (finished / "sample.txt").read_text()
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "step-00000030",
        "step-00000040",
    ]
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss/train")]
    assert losses == pytest.approx([record["loss"] for record in records])


# Dion3 and NorMuon keep all that Dion2 and Muon keep, and more.
@pytest.mark.parametrize(
    "optimizer",
    [
        "dion",
        "dion3",
        "normuon",
        "torch-muon",
        "lion",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("dion2", "muon")),
    ],
)
def test_resume_equals_an_uninterrupted_run(
    tmp_path: Path, finished: Path, tiny: list[str], numbers, optimizer: str
) -> None:
    whole, parts = finished, tmp_path / "parts"
    if optimizer != "dion":
        whole = tmp_path / "whole"
        tiny = [*tiny, f"--optimizer.name={optimizer}"]
        assert main(["train", *tiny, f"--out={whole}"]) == 0
    # A checkpoint in the middle, and numbers of later steps that a lost machine has left behind.
    assert main(["train", *tiny, "--save-every=15", "--keep-checkpoints=9", f"--out={parts}"]) == 0
    for step in (30, 40):
        shutil.rmtree(parts / "checkpoints" / f"step-{step:08d}")
    (parts / "summary.json").unlink()
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    assert main(["train", f"--resume={parts}"]) == 0
    assert numbers(parts) == numbers(whole)
    saved = [saved_tensors(run / "checkpoints" / "step-00000040") for run in (whole, parts)]
    assert len(saved[0]) > 2 * 21  # weights, and at least one state of each
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert (parts / "sample.txt").read_text() == (whole / "sample.txt").read_text()


def test_resume_with_more_steps(tmp_path: Path, finished: Path, numbers) -> None:
    longer = shutil.copytree(finished, tmp_path / "longer")
    assert main(["train", f"--resume={longer}", "--steps=45"]) == 0
    assert numbers(longer)[:40] == numbers(finished)
    assert [record["step"] for record in numbers(longer)] == list(range(1, 46))
    assert json.loads((longer / "summary.json").read_text())["steps"] == 45


def test_accumulation_changes_nothing_but_memory(tmp_path: Path, finished: Path, tiny: list[str], numbers) -> None:
    assert main(["train", *tiny, "--accumulation=4", "--log-every=4", f"--out={tmp_path / 'run'}"]) == 0
    records, whole = numbers(tmp_path / "run"), numbers(finished)
    assert [record["step"] for record in records] == [4, 8, 10, 12, 16, 20, 24, 28, 30, 32, 36, 40]
    assert records[0]["loss"] == pytest.approx(whole[3]["loss"], rel=1e-4)
    assert records[-1]["val_loss"] == pytest.approx(whole[-1]["val_loss"], rel=0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_saves_a_checkpoint(
    tmp_path: Path, tiny: list[str], finished: Path, numbers, number: signal.Signals
) -> None:
    directory = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "orthon", "train", *tiny, f"--out={directory}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("4/40"):
            process.send_signal(number)
            break
    said, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert f"go on with: orthon train --resume {directory}" in said
    done = len(numbers(directory))
    assert 4 <= done < 40
    assert (directory / "checkpoints" / f"step-{done:08d}").exists()
    assert main(["train", f"--resume={directory}"]) == 0
    assert numbers(directory) == numbers(finished)


def test_a_loss_that_is_no_number(tmp_path: Path, tiny: list[str], fails) -> None:
    said = fails("train", *tiny, "--optimizer.name=adamw", "--optimizer.lr=1e30", "--out", tmp_path / "run", code=1)
    assert "the loss of step" in said
