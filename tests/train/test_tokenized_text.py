"""Text with a tokenizer: which tokens it becomes, how they are kept, and that a run goes on with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from orthon.train.commands.main import main
from orthon.train.errors import UserError
from orthon.train.settings.data import DataConfig
from orthon.train.text.corpus import load_corpus
from orthon.train.text.tokenizer import open_tokenizer
from orthon.train.text.tokens import Corpus, Piece
from tests.train.support.texts import (
    lines,
    write_jsonl,
    write_parquet,
    write_saved,
    write_shard,
    write_text,
    write_tokenizer,
)
from tests.train.support.torchrun import torchrun

TEXTS = [*lines(200), "größer 😀 <|endoftext|> in a text\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def load(path: Path, tokenizer: Path | str, beside: Path, **settings: object) -> Corpus:
    data = {"source": "text", "paths": (str(path),), "tokenizer": str(tokenizer), **settings}
    return load_corpus(DataConfig(**data), beside=beside)


def read(pieces: tuple[Piece, ...]) -> list[int]:
    return [int(token) for piece in pieces for token in piece.tokens]


def test_tokens_of_every_document_and_its_end(tmp_path: Path, tokenizer: Path) -> None:
    corpus = load(write_text(tmp_path / "text", TEXTS), tokenizer, tmp_path)
    bare = Tokenizer.from_file(str(tokenizer))
    bare.no_truncation()
    bare.no_padding()
    bare.encode_special_tokens = True
    end = bare.token_to_id("<|endoftext|>")
    expected = [[*bare.encode(text, add_special_tokens=False).ids, end] for text in TEXTS]
    tokens = read(corpus.train), read(corpus.held_out)
    for part in tokens:
        assert part[-1] == end
    found = [row for part in tokens for row in np.split(part, np.flatnonzero(np.array(part) == end) + 1)]
    assert sorted(row.tolist() for row in found if len(row)) == sorted(expected)
    assert sum(map(len, tokens)) == sum(map(len, expected))
    assert corpus.vocab_size == 320  # 300, rounded up
    assert corpus.decode([*expected[0], 319]) == TEXTS[0] + "<|endoftext|>"
    assert isinstance(corpus.train[0].tokens, np.memmap)
    assert corpus.train[0].tokens.dtype == np.uint16


def test_tokens_are_made_once(tmp_path: Path, tokenizer: Path, snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text(tmp_path / "text", TEXTS)
    first = load(text, tokenizer, tmp_path / "runs")
    before = snapshot(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["token-cache"]
    assert sorted(Path(name).name for name in before) == [
        "tokenizer.json",
        "tokens.json",
        "train_000000.bin",
        "val_000000.bin",
    ]
    assert load(text, tokenizer, tmp_path / "runs").fingerprint == first.fingerprint
    assert snapshot(tmp_path / "runs") == before
    # Another text, tokenizer or end of documents has its own.
    elsewhere = shutil.copy(tokenizer, tmp_path / "copy.json")
    assert load(text, elsewhere, tmp_path / "runs").fingerprint == first.fingerprint
    assert snapshot(tmp_path / "runs") == before
    other_end = load(text, tokenizer, tmp_path / "runs", document_end="a")
    path = text / "0000.txt"
    stat = path.stat()
    path.write_text(path.read_text().replace("t", "T"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    other_text = load(text, tokenizer, tmp_path / "runs")
    assert len({first.fingerprint, other_end.fingerprint, other_text.fingerprint}) == 3
    assert snapshot(tmp_path / "runs").items() >= before.items()


def test_a_tokenizer_with_many_tokens(tmp_path: Path) -> None:
    large = write_tokenizer(tmp_path / "tokenizer.json", extra_tokens=70000)
    corpus = load(write_text(tmp_path / "text", ["extra69999 the cat " * 50] * 30), large, tmp_path)
    assert corpus.train[0].tokens.dtype == np.uint32
    assert corpus.train[0].tokens.max() == 70299
    assert corpus.vocab_size == 70336


def test_a_folder_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_tokenizer(tmp_path / "model" / "tokenizer.json", end=None)
    assert open_tokenizer(str(tmp_path / "model")).end is None
    assert open_tokenizer(str(tmp_path / "model"), "a").end is not None
    corpus = load(write_text(tmp_path / "text", TEXTS), tmp_path / "model", tmp_path)
    assert "größer" in corpus.decode(read(corpus.train + corpus.held_out))


def bad_tokenizers(folder: Path, tokenizer: Path) -> dict[str, tuple[str, str]]:
    (folder / "empty").mkdir()
    (folder / "text.json").write_text("no JSON")
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "binary.json").write_bytes(b"\xff\xfe")
    (folder / "deep.json").write_text("[" * 100_000)
    good = json.loads(tokenizer.read_text())
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 4_000_000_000}, "unk_token": "[UNK]"}
    (folder / "giant.json").write_text(json.dumps(good | {"model": model}))
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "panic.json").write_text(json.dumps(good | {"normalizer": normalizer}))
    return {
        str(folder / "missing.json"): ("", "there is no file or directory"),
        "./missing": ("", "there is no file or directory"),
        str(folder / "empty"): ("", "has no tokenizer.json"),
        str(folder / "text.json"): ("", "is no JSON file of the tokenizers library"),
        str(folder / "other.json"): ("", "is no JSON file of the tokenizers library"),
        str(folder / "binary.json"): ("", "is no JSON file of the tokenizers library"),
        str(folder / "deep.json"): ("", "is no JSON file of the tokenizers library"),
        str(folder / "giant.json"): ("", "has token 4000000000, but tokens must be below 1048576"),
        str(folder / "panic.json"): ("", "is no JSON file of the tokenizers library"),
        str(tokenizer): ("--data.document-end <none>", "data.document_end must be a token of"),
        f"{tokenizer} ": ("", "data.tokenizer"),
    }


def test_bad_tokenizers(tmp_path: Path, tokenizer: Path, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = write_text(tmp_path / "text", TEXTS)
    for word, (more, message) in bad_tokenizers(tmp_path, tokenizer).items():
        words = ["--data.source=text", f"--data.paths={text}", f"--data.tokenizer={word}", *more.split()]
        assert message in fails("train", *words, "--out", tmp_path / "runs" / "run"), word
    assert "must be at least the 300 of data.tokenizer" in fails(
        "train", "--data.tokenizer", tokenizer, "--data.vocab-size=299", "--out", tmp_path / "runs" / "run"
    )
    assert not (tmp_path / "runs").exists()


def test_nothing_is_drawn_at_random(tmp_path: Path, tokenizer: Path) -> None:
    content = json.loads(tokenizer.read_text())
    content["model"]["dropout"] = 0.5
    (tmp_path / "dropout.json").write_text(json.dumps(content))
    text = [line.encode() for line in TEXTS]
    plain, dropout = (open_tokenizer(str(path)).encode(text) for path in (tokenizer, tmp_path / "dropout.json"))
    assert [row.tolist() for row in dropout] == [row.tolist() for row in plain]


def test_a_text_that_a_tokenizer_cannot_write(tmp_path: Path, fails) -> None:
    model = {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "[UNK]"}
    (tmp_path / "words.json").write_text(json.dumps({"version": "1.0", "model": model}))
    words = ["--data.source=text", f"--data.paths={write_text(tmp_path / 'text', TEXTS)}", "--data.tokenizer"]
    said = fails("train", *words, tmp_path / "words.json", "--out", tmp_path / "runs" / "run")
    assert "words.json cannot make tokens of the text: WordLevel error: Missing [UNK] token" in said


def test_settings_of_a_tokenizer() -> None:
    for settings, message in (
        ({"document_end": "</s>"}, "only data.tokenizer uses it"),
        ({"tokenizer": ""}, "data.tokenizer must be a file, a folder or a name"),
        ({"token_bits": 32}, "only data.source shards uses it"),
        ({"source": "text", "paths": ("x",), "held_out_paths": ()}, "data.held_out_paths must name files"),
        ({"held_out_paths": ("x",)}, "only data.source text, jsonl, parquet, saved or shards uses it"),
    ):
        with pytest.raises(ValueError, match="data") as error:
            DataConfig(**settings)
        assert message in str(error.value)
    assert DataConfig(tokenizer="openai/gpt2-like").tokenizer == "openai/gpt2-like"
    assert DataConfig(tokenizer="./x").tokenizer == str(Path("x").absolute())


def sources(folder: Path, tokenizer: Path) -> dict[str, list[str]]:
    """Flags for every source of text that needs no network."""
    held_out = lines(40, seed=3)
    shards = write_shard(folder / "shards" / "train.bin", range(3, 3000)).parent
    write_shard(shards / "val.bin", range(1000))
    flags = {
        "stdlib": ["--data.source=stdlib"],
        "text": ["--data.source=text", f"--data.paths={write_text(folder / 'text', TEXTS)}"],
        "jsonl": ["--data.source=jsonl", f"--data.paths={write_jsonl(folder / 'j.jsonl', TEXTS)}"],
        "shards": ["--data.source=shards", f"--data.paths={shards}", "--data.vocab-size=3000"],
    }
    try:
        flags["hf"] = ["--data.source=hf", "--data.name=some/set"]
        flags["parquet"] = ["--data.source=parquet", f"--data.paths={write_parquet(folder / 'p.parquet', TEXTS)}"]
        flags["saved"] = ["--data.source=saved", f"--data.paths={write_saved(folder / 'saved', TEXTS)}"]
    except ImportError:
        pass
    own = write_text(folder / "own", held_out)
    flags["held-out"] = [*flags["text"], f"--data.held-out-paths={own}"]
    with_tokenizer = {
        f"{name}, tokenizer": [*words, f"--data.tokenizer={tokenizer}"]
        for name, words in flags.items()
        if name not in ("stdlib", "shards")
    }
    return flags | with_tokenizer


KINDS = ["stdlib", "text", "jsonl", "parquet", "saved", "hf", "held-out", "shards"]
KINDS += [f"{name}, tokenizer" for name in KINDS[1:-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_resume_equals_an_uninterrupted_run(
    tmp_path: Path, tiny: list[str], tokenizer: Path, numbers, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    flags = sources(tmp_path, tokenizer)
    if kind.startswith(("parquet", "saved", "hf")):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": TEXTS}))
        monkeypatch.setattr("orthon.train.text.hub._unreachable", lambda: None)
    words = [*tiny[:-2], "--batch-size=2", "--steps=8", "--save-every=4", "--validate-every=4", *flags[kind]]
    whole, parts = tmp_path / "runs" / "whole", tmp_path / "elsewhere" / "parts"
    assert main(["train", *words, f"--out={whole}"]) == 0
    assert main(["train", *words, f"--out={parts}"]) == 0
    shutil.rmtree(parts / "checkpoints" / "step-00000008")
    (parts / "summary.json").unlink()
    monkeypatch.chdir(tmp_path / "runs")
    if kind.endswith("tokenizer"):  # what is kept may be lost; it is made anew
        shutil.rmtree(tmp_path / "elsewhere" / "token-cache")
    assert main(["train", f"--resume={parts}"]) == 0
    assert numbers(parts) == numbers(whole)
    assert (parts / "sample.txt").read_text() == (whole / "sample.txt").read_text()


def test_a_run_goes_on_with_its_own_text_alone(tmp_path: Path, tiny: list[str], tokenizer: Path, fails) -> None:
    text = write_text(tmp_path / "text", TEXTS)
    words = [*tiny[:-2], "--data.source=text", f"--data.paths={text}", f"--data.tokenizer={tokenizer}"]
    run = tmp_path / "runs" / "run"
    assert main(["train", *words, "--steps=2", f"--out={run}"]) == 0
    (text / "0000.txt").write_text("another text\n")
    assert "was trained on another text" in fails("train", f"--resume={run}", "--steps=3")


def test_many_processes_make_the_tokens_once(tmp_path: Path, tiny: list[str], tokenizer: Path) -> None:
    text = write_text(tmp_path / "text", TEXTS)
    words = [*tiny[:-2], "--data.source=text", f"--data.paths={text}", f"--data.tokenizer={tokenizer}"]
    torchrun(2, "train", *words, "--steps=2", "--mesh.dp-shard=2", f"--out={tmp_path / 'runs' / 'run'}")
    [kept] = (tmp_path / "runs" / "token-cache").iterdir()
    assert json.loads((kept / "tokens.json").read_text())["train"] > 1000


def test_damage_to_what_is_kept(tmp_path: Path, tokenizer: Path) -> None:
    text = write_text(tmp_path / "text", TEXTS)
    load(text, tokenizer, tmp_path)
    [kept] = (tmp_path / "token-cache").iterdir()

    def refused(message: str) -> None:
        with pytest.raises((UserError, OSError), match=message):
            load(text, tokenizer, tmp_path)

    shard, note = kept / "train_000000.bin", kept / "tokens.json"
    whole, noted = shard.read_bytes(), json.loads(note.read_text())
    shard.write_bytes(whole[:-2])
    refused("train_000000.bin is damaged")
    shard.unlink()
    refused("train_000000.bin")
    (tmp_path / "secret.bin").write_bytes(whole)
    shard.symlink_to(tmp_path / "secret.bin")
    refused("is a symbolic link")
    shard.unlink()
    shard.write_bytes(whole)
    for change in ({"train": -1}, {"train": True}, {"per_shard": 0}, {"per_shard": 7}, {"fingerprint": 3}, {"x": 1}):
        note.write_text(json.dumps({**noted, **change}))
        refused("damaged|not the tokens|holds no tokens")
    for content in ("", "[]", "[" * 100_000, "{}"):
        note.write_text(content)
        refused("holds no tokens that are whole")


def test_the_trainer_without_a_tokenizer_does_not_import_it() -> None:
    code = "import sys, orthon.train.text.corpus; sys.exit('tokenizers' in sys.modules or 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
