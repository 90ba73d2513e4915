"""`orthon tokenize` is killed before each of its calls that change files, and the same command goes on."""

import os
import sys
import warnings
from pathlib import Path

import pytest

from orthon.train.commands.main import main
from orthon.train.text import tokenizing
from tests.train.support.texts import lines, write_jsonl, write_tokenizer

CALLS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}


def killed(words: list[str], folder: Path, before: int) -> bool:
    """Carry out a command in a child that ends at once before the call of this number; return whether it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which do not work here
        child = os.fork()
    if child == 0:
        calls = 0

        def watch(event: str, args: tuple[object, ...]) -> None:
            nonlocal calls
            if event in CALLS and str(args[0]).startswith(f"{folder}/"):
                calls += 1
                if calls == before:
                    os._exit(9)

        sys.addaudithook(watch)
        try:
            os._exit(main(words))
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # its threads do not outlive a fork
    monkeypatch.setattr(tokenizing, "BATCH_BYTES", 4000)
    monkeypatch.setattr(tokenizing, "SAVE_EVERY", 2000)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    text = write_jsonl(tmp_path / "rows.jsonl", lines(120))
    words = ["tokenize", "--data.source=jsonl", f"--data.paths={text}", f"--data.tokenizer={tokenizer}"]
    words.append("--shard-tokens=1500")
    assert main([*words, f"--out={tmp_path / 'whole'}"]) == 0
    number = 1
    while True:
        place = tmp_path / f"{number}"
        place.mkdir()
        command = [*words, f"--out={place / 'out'}"]
        died = killed(command, place, number)
        assert main(command) == 0, (number, capfd.readouterr())
        assert content(place / "out") == content(tmp_path / "whole"), number
        assert [path.name for path in place.iterdir()] == ["out"]
        if not died:
            break
        number += 1
    assert number > 20
