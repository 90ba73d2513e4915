"""Which checkpoints a run goes on from: the newest one that is whole, and nothing of it is executed or followed."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orthon.train.checkpoints import saver
from orthon.train.checkpoints.manifest import Digest
from orthon.train.checkpoints.newest import Checkpoint, newest_checkpoint
from orthon.train.commands.main import main
from orthon.train.processes.ranks import Processes

ALONE = Processes(torch.device("cpu"))
NEWEST = "step-00000040"
BEFORE = "step-00000030"
FILES = [".metadata", "__0_0.distcp", "manifest.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A tiny run with checkpoints of steps 30 and 40."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", *tiny, "--save-every=30", f"--out={directory}"]) == 0
    return directory


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def look(run: Path) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    return newest_checkpoint(run, ALONE, said.append), said


def change_manifest(path: Path, **changes: object) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def admit(path: Path, name: str) -> None:
    """Write the digest of a file as it is now into the manifest, as one would who forges a checkpoint."""
    digest = Digest.of(path / name)
    files = json.loads((path / "manifest.json").read_text())["files"]
    change_manifest(path, files={**files, name: {"bytes": digest.bytes, "sha256": digest.sha256}})


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    """Put the content elsewhere, and a link in its place."""
    path.rename(path.parent.parent.parent / path.name)
    path.symlink_to(path.parent.parent.parent / path.name)


def redirect(path: Path) -> None:
    """Let the description name a file of another folder, and forge the manifest so that it fits."""
    file = path / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = f"../{BEFORE}/__0_0.distcp"
    file.write_bytes(pickle.dumps(metadata))
    admit(path, ".metadata")


class Touch:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (str(self.path),)


def execute(path: Path) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(Touch(path.parent.parent / "executed")))
    admit(path, ".metadata")


def name_a_file(name: str) -> Callable[[Path], None]:
    return lambda path: change_manifest(path, files={name: {"bytes": 1, "sha256": ""}})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "data truncated": (lambda path: truncate(path / "__0_0.distcp"), "its __0_0.distcp has "),
    "data flipped": (lambda path: flip_a_bit(path / "__0_0.distcp"), "its __0_0.distcp has changed since it was"),
    "data missing": (lambda path: (path / "__0_0.distcp").unlink(), "it has no __0_0.distcp"),
    "description truncated": (lambda path: truncate(path / ".metadata"), "its .metadata has "),
    "description flipped": (lambda path: flip_a_bit(path / ".metadata"), "its .metadata has changed since it was"),
    "description missing": (lambda path: (path / ".metadata").unlink(), "it has no .metadata"),
    "manifest truncated": (lambda path: truncate(path / "manifest.json"), "its manifest.json is not JSON"),
    "manifest missing": (lambda path: (path / "manifest.json").unlink(), "it has no manifest.json"),
    "manifest nested": (lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest.json is not JSON"),
    "manifest of another": (lambda path: change_manifest(path, format="x"), "its manifest.json is not of an orthon"),
    "manifest of a list": (
        lambda path: (path / "manifest.json").write_text("[1]"),
        "manifest.json is not of an orthon",
    ),
    "later version": (lambda path: change_manifest(path, version=2), "it has version 2 of the format"),
    "more entries": (lambda path: change_manifest(path, colour=2), "its manifest.json lacks entries or has others"),
    "no digests": (lambda path: change_manifest(path, files=[]), "its manifest.json lacks entries or has others"),
    "no files": (lambda path: change_manifest(path, files={}), "its manifest.json names no .metadata"),
    "a step in words": (lambda path: change_manifest(path, step="forty"), "has entries of another kind"),
    "another step": (lambda path: change_manifest(path, step=30), "its manifest.json is of step 30"),
    "a way out": (name_a_file("../config.yaml"), "names a file '../config.yaml' that cannot be one of its own"),
    "an absolute path": (name_a_file("/etc/passwd"), "names a file '/etc/passwd' that cannot be one of its own"),
    "the folder above": (name_a_file(".."), "names a file '..' that cannot be one of its own"),
    "a way out in the description": (redirect, f"lies in '../{BEFORE}/__0_0.distcp', outside its folder"),
    "code in the description": (execute, "mkdir, which is no part of a checkpoint's description"),
    "a link to data": (lambda path: link(path / "__0_0.distcp"), "__0_0.distcp in it is not a plain file"),
    "a link to more": (lambda path: (path / "more").symlink_to("/etc/passwd"), "more in it is not a plain file"),
    "a link to a folder": (link, "it is not a folder"),
    "a file": (lambda path: (shutil.rmtree(path), path.write_text("x")), "it is not a folder"),
    "an empty folder": (lambda path: (shutil.rmtree(path), path.mkdir()), "it has no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_good_one(run: Path, damage: str) -> None:
    spoil, reason = DAMAGES[damage]
    folder = run / "checkpoints"
    spoil(folder / NEWEST)
    found, said = look(run)
    assert found is not None
    assert (found.path, found.manifest.step) == (folder / BEFORE, 30)
    [line] = said
    assert line.startswith(f"checkpoint {folder / NEWEST} is skipped (")
    assert line.endswith(f"): going on from {folder / BEFORE}")
    assert reason in line
    assert not (run / "executed").exists()


def test_names_that_are_no_checkpoints(run: Path) -> None:
    folder = run / "checkpoints"
    for name in ("step-00000050.part", "step-40", "step-00000050.old.part", "steps", "step-0000005x"):
        (folder / name).mkdir()
    found, said = look(run)
    assert found is not None
    assert found.path == folder / NEWEST
    assert not said


def test_going_on_from_the_one_before(run: Path, finished: Path, numbers, capsys: pytest.CaptureFixture[str]) -> None:
    """What was skipped gives way, and so does what a killed run has left."""
    flip_a_bit(run / "checkpoints" / NEWEST / "__0_0.distcp")
    for left in ("step-00000040.part", "step-00000040.old.part", "step-00000035.part"):
        (run / "checkpoints" / left).mkdir()
        (run / "checkpoints" / left / "__0_0.distcp").write_bytes(b"a part of a file")
    capsys.readouterr()
    assert main(["train", f"--resume={run}"]) == 0
    assert "is skipped (its __0_0.distcp has changed since it was written): going on from" in capsys.readouterr().out
    assert numbers(run) == numbers(finished)
    found, said = look(run)
    assert found is not None
    assert found.manifest.step == 40
    assert not said
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [BEFORE, NEWEST]
    assert sorted(path.name for path in (run / "checkpoints" / NEWEST).iterdir()) == FILES


def test_none_is_good(run: Path, finished: Path, tiny: list[str], fails, snapshot, numbers) -> None:
    for name in (BEFORE, NEWEST):
        truncate(run / "checkpoints" / name / ".metadata")
    before = snapshot(run)
    said = fails("train", f"--resume={run}")
    assert f"there is no checkpoint in {run} to go on from; checkpoint {run}/checkpoints/{NEWEST} is skipped (" in said
    assert BEFORE in said
    assert snapshot(run) == before
    shutil.rmtree(run / "checkpoints")
    assert f"there is no checkpoint in {run} to go on from\n" in fails("train", f"--resume={run}")
    # The settings in the directory are those of the command, so it begins anew.
    assert main(["train", *tiny, "--save-every=30", "--resume=auto", f"--out={run}"]) == 0
    assert numbers(run) == numbers(finished)


def test_a_good_one_of_something_else(run: Path, tmp_path: Path, tiny: list[str], fails, snapshot) -> None:
    """It is not damaged, so that going on from an older one would hide a mistake."""

    def refuses(message: str) -> None:
        before = snapshot(run)
        assert message in fails("train", "--resume", run)
        assert snapshot(run) == before

    path = run / "checkpoints" / NEWEST
    own = json.loads((path / "manifest.json").read_text())
    change_manifest(path, config={**own["config"], "model.layers": 3})
    refuses("has model.layers 3, which cannot become 2")
    change_manifest(path, config=own["config"], corpus="another")
    refuses("was trained on another text")
    shutil.rmtree(path)
    assert main(["train", *tiny, "--model.hidden-size=16", f"--out={tmp_path / 'other'}"]) == 0
    shutil.move(tmp_path / "other" / "checkpoints" / NEWEST, path)
    change_manifest(path, config=own["config"])
    refuses("does not fit this model and optimizer: ")
    (run / "config.yaml").write_text("steps: [")
    refuses("is not YAML")


def test_code_among_the_options(tmp_path: Path, tiny: list[str], fails, monkeypatch: pytest.MonkeyPatch) -> None:
    state = saver.run_state

    def poisoned(training) -> dict[str, Any]:
        content = state(training)
        content["optimizer"]["param_groups"][0]["lr"] = Touch(tmp_path / "executed")
        return content

    with monkeypatch.context() as context:
        context.setattr(saver, "run_state", poisoned)
        assert main(["train", *tiny, "--steps=1", f"--out={tmp_path / 'run'}"]) == 0
    said = fails("train", f"--resume={tmp_path / 'run'}")
    assert "does not fit this model and optimizer" in said
    assert "param_groups.0.lr' cannot be read: it names posix.mkdir, which is no part of" in said
    assert not (tmp_path / "executed").exists()


def test_auto(
    tmp_path: Path, finished: Path, tiny: list[str], numbers, fails, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command line begins, goes on, and knows when it is done."""
    run = tmp_path / "run"
    command = ["train", *tiny, "--save-every=30", "--resume=auto", f"--out={run}"]
    assert main([*command, "--steps=30", "--schedule.warmup=0.1"]) == 0
    assert numbers(run)[-1]["step"] == 30
    capsys.readouterr()
    assert main(command) == 0
    assert "40 steps from step 30" in capsys.readouterr().out
    assert numbers(run)[-1]["step"] == 40
    (run / "summary.json").unlink()  # killed after the last checkpoint
    assert main(command) == 0
    before = (run / "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == f"the run in {run} is complete: all of its 40 steps are done\n"
    assert (run / "summary.json").stat().st_mtime_ns == before
    assert f"the run in {run} has seed 0, which cannot become 1" in fails(*command, "--seed=1")
    assert "steps must be above the 40 that are done" in fails(*command, "--steps=39")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "other is not empty" in fails(*command[:-1], "--out", tmp_path / "other")


def test_auto_by_default(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, numbers) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("optimizer: {name: adamw}\n")
    for steps in (1, 2):
        assert main(["train", *tiny, f"--steps={steps}", "--config=run.yaml", "--resume=auto"]) == 0
    assert [record["step"] for record in numbers(tmp_path / "runs" / "adamw-0.02M")] == [1, 2]


@pytest.mark.parametrize("fractions", [("0.25", "0.5"), ("0.5", "0.25")])
def test_another_rank(tmp_path: Path, tiny: list[str], numbers, fractions: tuple[str, str]) -> None:
    run = tmp_path / "run"
    for steps, fraction in zip((10, 20), fractions, strict=True):
        words = [*tiny, f"--steps={steps}", f"--optimizer.rank-fraction={fraction}", "--schedule.decay=constant"]
        assert main(["train", *words, "--resume=auto", f"--out={run}"]) == 0
    losses = [record["val_loss"] for record in numbers(run) if "val_loss" in record]
    assert losses[1] < losses[0] < 4.5
    # The state is that of the new rank.
    assert main(["train", *words, "--steps=1", f"--out={tmp_path / 'fresh'}"]) == 0
    state = [json.loads((path / "summary.json").read_text())["state_bytes"] for path in (run, tmp_path / "fresh")]
    assert state[0] == state[1]
