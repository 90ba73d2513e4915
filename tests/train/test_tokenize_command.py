"""`orthon tokenize`: in real processes that are killed, on folders that hold something else, and then trained on."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from orthon.train.commands.main import main
from orthon.train.results.text_progress import text_progress
from orthon.train.settings.data import DataConfig
from orthon.train.text import tokenizing
from orthon.train.text.corpus import load_corpus
from orthon.train.text.shard_format import OF_BITS
from orthon.train.text.shard_writer import ShardWriter, shard_name
from orthon.train.text.tokenizer import Tokenizer
from tests.train.support.texts import lines, write_jsonl, write_text, write_tokenizer


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command without --out."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    text = write_jsonl(tmp_path / "rows.jsonl", lines(500))
    return ["tokenize", "--data.source=jsonl", f"--data.paths={text}", f"--data.tokenizer={tokenizer}"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_to_train_on(
    tmp_path: Path, words: list[str], tiny: list[str], capsys: pytest.CaptureFixture[str], snapshot
) -> None:
    out = tmp_path / "my tokens"
    assert main([*words, f"--out={out}", "--shard-tokens=2000"]) == 0
    said = capsys.readouterr().out
    assert f"orthon train --data.source shards --data.paths '{out}' --data.tokenizer '{out}/tokenizer.json'" in said
    assert not out.with_name("my tokens.part").exists()
    data = DataConfig(source="shards", paths=(str(out),), tokenizer=str(out / "tokenizer.json"))
    corpus = load_corpus(data)
    assert [len(piece.tokens) for piece in corpus.train[:-1]] == [2000] * (len(corpus.train) - 1)
    assert len(corpus.train) > 3
    assert corpus.vocab_size == 320
    assert load_corpus(DataConfig(source="shards", paths=(str(out),))).vocab_size == 300  # from the headers
    assert "the cat" in corpus.decode(corpus.train[0].tokens.tolist())
    run = ["train", *tiny[:-2], "--data.source=shards", f"--data.paths={out}", "--steps=2"]
    assert main([*run, f"--data.tokenizer={out / 'tokenizer.json'}", f"--out={tmp_path / 'run'}"]) == 0
    before = snapshot(out)
    assert main([*words, f"--out={out}", "--shard-tokens=2000"]) == 0  # it is there already
    assert snapshot(out) == before


@pytest.mark.parametrize("per_shard", [300, 1000, 10**8])
@pytest.mark.parametrize("batches", [1, 2, 5])
def test_an_interrupted_command_goes_on(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, per_shard: int, batches: int
) -> None:
    monkeypatch.setattr(tokenizing, "BATCH_BYTES", 9000)
    monkeypatch.setattr(tokenizing, "SAVE_EVERY", 3000)
    words = [*words, f"--shard-tokens={per_shard}"]
    assert main([*words, f"--out={tmp_path / 'whole'}"]) == 0
    calls = 0
    encode = Tokenizer.encode

    def interrupted(self: Tokenizer, contents: list[bytes]) -> object:
        nonlocal calls
        calls += 1
        if calls == batches + 1:
            raise KeyboardInterrupt
        return encode(self, contents)

    monkeypatch.setattr(Tokenizer, "encode", interrupted)
    assert main([*words, f"--out={tmp_path / 'parts'}"]) == 130
    assert not (tmp_path / "parts").exists()
    assert main([*words, f"--out={tmp_path / 'parts'}"]) == 0
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    text = write_jsonl(tmp_path / "rows.jsonl", [row * 50 for row in lines(1000)])
    words = ["tokenize", "--data.source=jsonl", f"--data.paths={text}", f"--data.tokenizer={tokenizer}"]
    assert main([*words, f"--out={tmp_path / 'whole'}"]) == 0
    code = "from orthon.train.text import tokenizing as t; t.BATCH_BYTES, t.SAVE_EVERY = 20000, 20000; "
    code += "from orthon.train.commands.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words, f"--out={tmp_path / 'parts'}"]
    state = tmp_path / "parts.part" / "state.json"
    process = subprocess.Popen(command, env={**os.environ, "RAYON_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)  # on a busy machine it could be done before the other has begun
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert other.stderr == f"orthon: another process is writing {tmp_path / 'parts.part'}\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*words, f"--out={tmp_path / 'parts'}"]) == 0
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_nothing_else_is_touched(tmp_path: Path, words: list[str], fails, snapshot) -> None:
    mine = write_text(tmp_path / "mine", ["mine"])
    write_text(tmp_path / "begun.part", ["mine"])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "linked.part").symlink_to(mine)
    for name in ("bad", "wrong"):
        (tmp_path / f"{name}.part").mkdir()
    (tmp_path / "bad.part" / "state.json").write_text("[" * 100_000)
    (tmp_path / "wrong.part" / "state.json").write_text('{"key": "other"}')
    before = snapshot(tmp_path)
    for name, message in {
        "mine": "holds no tokens that are whole",
        "begun": "holds other files",
        "file": "must be a folder but is a file",
        "link": "must be a folder but is a file or a symbolic link",
        "linked": "must be a folder but is a symbolic link",
        "bad": "is damaged",
        "wrong": "holds the beginning of other tokens",
    }.items():
        assert message in fails(*words, "--out", tmp_path / name), name
    now = {name: file for name, file in snapshot(tmp_path).items() if not name.endswith("/lock")}
    assert now == before


@pytest.mark.parametrize(
    "change",
    [{"digest": "no hex"}, {"digest": None}, {"digest": "00"}, {"train": -1}, {"train": True}, {"passages": 2**70},
     {"train": 5}, {"held_out": 2**20 + 1}, {"train": "1"}, {"more": 1}],
    ids=str,
)  # fmt: skip
def test_odd_states_of_the_same_job(tmp_path: Path, words: list[str], fails, change: dict[str, object]) -> None:
    assert main([*words, f"--out={tmp_path / 'out'}"]) == 0
    key = json.loads((tmp_path / "out" / "tokens.json").read_text())["key"]
    begun = tmp_path / "again.part" / "state.json"
    begun.parent.mkdir()
    begun.write_text(json.dumps({"key": key, **change}))
    said = fails(*words, "--out", tmp_path / "again")
    assert "is damaged" in said or "train_000000.bin is missing" in said or "val_000000.bin is missing" in said, said


def test_what_is_read_is_a_file(tmp_path: Path, words: list[str], fails) -> None:
    """Links and endless files are not read."""
    (tmp_path / "zeros").mkdir()
    (tmp_path / "zeros" / "tokens.json").symlink_to("/dev/zero")
    assert "holds no tokens that are whole" in fails(*words, "--out", tmp_path / "zeros")
    (tmp_path / "begun.part").mkdir()
    (tmp_path / "begun.part" / "state.json").symlink_to("/dev/zero")
    assert "is damaged" in fails(*words, "--out", tmp_path / "begun")


def test_other_text_needs_another_folder(tmp_path: Path, words: list[str], fails) -> None:
    assert main([*words, f"--out={tmp_path / 'out'}"]) == 0
    assert "holds other tokens" in fails(*words, "--shard-tokens=99", "--out", tmp_path / "out")


def test_errors(tmp_path: Path, words: list[str], fails, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tokenize needs --data.tokenizer" in fails(*words[:-1], "--out", tmp_path / "out")
    assert "and not shards" in fails("tokenize", "--data.source=shards", "--data.paths=x", "--out", tmp_path / "out")
    assert "shard_tokens must be" in fails(*words, "--shard-tokens=0", "--out", tmp_path / "out")
    (tmp_path / "rows.jsonl").write_text("\n")
    assert "there is no training text in JSONL files" in fails(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr("orthon.train.results.text_progress.time.monotonic", lambda: float(next(now)))
    file = io.StringIO()
    with text_progress("tokenizing [it]", 1000, Console(file=file, force_terminal=False)) as advance:
        for _ in range(100):
            advance(10)
    said = file.getvalue().splitlines()
    assert said[0] == "tokenizing [it]: 10 %, 180 s left"
    assert len(said) == 10
    file = io.StringIO()
    with text_progress("tokenizing [it]", 100, Console(file=file, force_terminal=True, width=90)) as advance:
        advance(40)
    assert "tokenizing [it]" in file.getvalue()


def test_a_refused_text_is_in_the_way_of_no_other(tmp_path: Path, words: list[str], fails) -> None:
    text = tmp_path / "rows.jsonl"
    whole = text.read_text()
    text.write_text('{"text": ""}\n')
    assert "there is no training text" in fails(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out.part").exists()
    text.write_text(whole)
    assert main([*words, f"--out={tmp_path / 'out'}"]) == 0


def test_the_size_of_the_vocabulary_is_no_matter_here(tmp_path: Path, words: list[str], fails) -> None:
    assert "data.vocab_size has no effect" in fails(*words, "--data.vocab-size=1000", "--out", tmp_path / "out")


def test_shards_behind_are_dropped_by_number(tmp_path: Path) -> None:
    """A million of them has names of seven digits, which come before the others in the order of letters."""
    for number in range(999_998, 1_000_003):
        (tmp_path / shard_name("train", number)).touch()
    (tmp_path / "train_x.bin").touch()
    ShardWriter(tmp_path, "train", form=OF_BITS[16], vocab_size=9, per_shard=1, written=1_000_001)
    left = [*(shard_name("train", number) for number in range(999_998, 1_000_001)), "train_x.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)
