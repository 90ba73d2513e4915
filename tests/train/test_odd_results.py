"""A run whose manifest, metrics or summary hold odd values is resumed, or refused in one line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orthon.train.commands.main import main

DEEP = "deep"
FILES = {"manifest": "checkpoints/step-00000001/manifest.json", "metrics": "metrics.jsonl", "summary": "summary.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    directory = tmp_path_factory.mktemp("odd") / "run"
    assert main(["train", *tiny, "--steps=1", "--validate-every=1", f"--out={directory}"]) == 0
    return directory


def entries() -> Iterator[tuple[str, str, Any]]:
    named = {
        "manifest": ("step", "sequences", "seconds", "config", "corpus", "files"),
        "metrics": ("step", "loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "optimizer_share", "seconds"),
        "summary": ("steps", "val_loss", "seconds", "optimizer_share", "state_bytes", "corpus", "sample"),
    }
    texts = ("corpus", "sample")
    for file, names in named.items():
        for name in names:
            mapping = name in ("config", "files")
            for value in ([], [1], DEEP, None, True, 3 if name in texts else "x", *(() if mapping else ({},))):
                if (file, name, value) != ("metrics", "val_loss", None):
                    yield file, name, value


@pytest.mark.parametrize(("file", "name", "value"), list(entries()))
def test_odd_entry(tmp_path: Path, run: Path, fails, file: str, name: str, value: Any) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / FILES[file]
    good = json.loads(path.read_text())
    text = json.dumps({**good, name: value}).replace('"deep"', "[" * 50_000 + "]" * 50_000)
    path.write_text(text + "\n" + (json.dumps(good) + "\n" if file == "metrics" else ""))
    said = fails("train", "--resume", copy, *([] if file == "summary" else ["--steps=2"]))
    assert len(said) < 600
    assert "its manifest.json" in said or "is damaged" in said


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"3", b"{}", b"{", b"[" * 100_000, b'{"step": 1}'])
@pytest.mark.parametrize("file", FILES)
def test_odd_file(tmp_path: Path, run: Path, fails, file: str, content: bytes) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / FILES[file]
    path.write_bytes(content + b"\n" + (path.read_bytes() if file == "metrics" else b""))
    said = fails("train", "--resume", copy, *([] if file == "summary" else ["--steps=2"]))
    assert len(said) < 600
