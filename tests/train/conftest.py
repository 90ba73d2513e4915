import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orthon.train.commands.main import main

# A LLaMA of 0.03 M parameters: a run of forty steps takes about a second.
TINY = """
    --model.hidden-size=32 --model.layers=2 --model.heads=2 --model.kv-heads=1 --model.ffn=64
    --model.context=32 --batch-size=4 --steps=40 --validate-every=10 --validation-sequences=8
    --sample-tokens=8
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a tiny run on 100 kB of real text that every machine has."""
    text = Path(sysconfig.get_path("stdlib")) / "argparse.py"
    return [*TINY.split(), "--data.source=text", f"--data.paths={text}"]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]):
    """Call the command line, which is to fail with one line on stderr; return the line."""

    def call(*words: str, code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        said = capsys.readouterr().err
        assert said.startswith("orthon: ")
        assert said.count("\n") == 1
        return said

    return call


@pytest.fixture
def numbers():
    """Read the metrics of a run, without those that depend on the machine's speed."""

    def read(directory: Path) -> list[dict[str, float]]:
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        timed = ("tokens_per_second", "optimizer_share", "seconds")
        return [{key: value for key, value in record.items() if key not in timed} for record in records]

    return read


@pytest.fixture
def snapshot():
    """All files below a directory with their content and time of change."""

    def take(directory: Path) -> dict[str, tuple[bytes, int]]:
        files = [path for path in directory.rglob("*") if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return take
