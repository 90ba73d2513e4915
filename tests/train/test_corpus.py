import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from orthon.train.errors import UserError
from orthon.train.settings.data import DataConfig
from orthon.train.text import hub
from orthon.train.text.byte_corpus import byte_corpus, is_held_out
from orthon.train.text.corpus import load_corpus
from orthon.train.text.shards import shard_corpus
from orthon.train.text.tokens import Corpus, Piece


def text(pieces: tuple[Piece, ...]) -> bytes:
    return b"".join(piece.tokens.tobytes() for piece in pieces)


def test_the_standard_library() -> None:
    corpus = load_corpus(DataConfig())
    train, held_out = text(corpus.train), text(corpus.held_out)
    assert corpus.vocab_size == 256
    assert b"class ArgumentParser" in train + held_out
    assert 0.02 < len(held_out) / len(train + held_out) < 0.1
    assert load_corpus(DataConfig()).fingerprint == corpus.fingerprint


def test_documents_are_held_out_by_their_name() -> None:
    documents = [(f"file {i}", f"text {i}".encode()) for i in range(400)]
    corpus = byte_corpus("a test", documents)
    train, held_out = (set(text(part).rstrip(b"\0").split(b"\0")) for part in (corpus.train, corpus.held_out))
    assert held_out == {content for name, content in documents if is_held_out(name)}
    assert train == {content for name, content in documents if not is_held_out(name)}
    assert 8 < len(held_out) < 40
    assert "documents" in corpus.description
    # A document stays where it is when others come or go.
    fewer = byte_corpus("a test", documents[::2])
    assert set(text(fewer.held_out).rstrip(b"\0").split(b"\0")) <= held_out
    assert fewer.fingerprint != corpus.fingerprint


def test_the_end_of_few_documents_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("a" * 99)
    (tmp_path / "sub" / "b").write_text("b" * 99)
    (tmp_path / "sub" / "empty").write_text("")
    (tmp_path / ".hidden").write_text("secret")
    corpus = load_corpus(DataConfig(source="text", paths=(str(tmp_path),)))
    assert text(corpus.train + corpus.held_out) == b"a" * 99 + b"\0" + b"b" * 99 + b"\0"
    assert len(corpus.held_out[0].tokens) == 10
    assert "the last 5% of the text" in corpus.description
    assert corpus.decode([97, 0, 255]) == "a\n\ufffd"


@pytest.mark.parametrize("header", [False, True])
def test_shards(tmp_path: Path, header: bool) -> None:
    for name, tokens in (("train_0.bin", range(500)), ("train_1.bin", range(300)), ("val_0.bin", range(100))):
        write_shard(tmp_path / name, np.array(tokens), header)
    corpus = load_corpus(DataConfig(source="shards", paths=(str(tmp_path),)))
    assert [piece.tokens.tolist() for piece in corpus.train] == [list(range(500)), list(range(300))]
    assert [piece.tokens.tolist() for piece in corpus.held_out] == [list(range(100))]
    assert all(isinstance(piece.tokens, np.memmap) for piece in corpus.train)
    assert corpus.vocab_size == 50304
    assert corpus.decode([5, 6]) == "5 6"


def write_shard(path: Path, tokens: np.ndarray, header: bool = True, version: int = 1, says: int | None = None) -> None:
    numbers = np.zeros(256, "<i4")
    numbers[:3] = 20240520, version, len(tokens) if says is None else says
    path.write_bytes((numbers.tobytes() if header else b"") + tokens.astype("<u2").tobytes())


def test_shard_errors(tmp_path: Path) -> None:
    def load() -> Corpus:
        return load_corpus(DataConfig(source="shards", paths=(str(tmp_path),)))

    with pytest.raises(UserError, match="no training shard"):
        load()
    write_shard(tmp_path / "train.bin", np.arange(9))
    with pytest.raises(UserError, match="no held-out shard"):
        load()
    write_shard(tmp_path / "val.bin", np.arange(9), says=10)
    with pytest.raises(UserError, match=r"val\.bin is damaged: its header says 10 tokens, but it holds 9"):
        load()
    write_shard(tmp_path / "val.bin", np.arange(9), version=2)
    with pytest.raises(UserError, match=r"val\.bin has version 2"):
        load()
    (tmp_path / "val.bin").write_bytes(b"odd")
    with pytest.raises(UserError, match=r"val\.bin is damaged: 3 bytes are no whole number"):
        load()


def test_tokens_beyond_the_vocabulary_are_told_at_once(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_shard(tmp_path / f"{name}.bin", np.arange(60_000, 60_100).astype(np.uint16))
    with pytest.raises(UserError, match=r"train\.bin holds token 60099, but the vocabulary has 50304 tokens"):
        shard_corpus([str(tmp_path)], None)
    assert shard_corpus([str(tmp_path)], 60_100).vocab_size == 60_100


def test_names_of_any_bytes(tmp_path: Path) -> None:
    for name in (b"\xfftrain.bin", b"\xffval.bin"):
        write_shard(Path(os.fsdecode(bytes(tmp_path) + b"/" + name)), np.arange(100).astype(np.uint16))
    assert shard_corpus([str(tmp_path)], None).fingerprint


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a network."""
    monkeypatch.setattr(hub, "_unreachable", lambda: None)


class FakeRows(dict):
    column_names = ("body", "id")


def test_a_hugging_face_data_set(monkeypatch: pytest.MonkeyPatch, reachable) -> None:
    asked = []

    def load_dataset(*args: object, **options: object) -> FakeRows:
        asked.append((args, options))
        return FakeRows(body=[f"row {i}" for i in range(100)], id=list(range(100)))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = DataConfig(source="hf", name="some/set", subset="small", split="all", text_column="body")
    corpus = load_corpus(data)
    assert asked == [(("some/set", "small"), {"split": "all"})]
    rows = (text(corpus.train) + text(corpus.held_out)).rstrip(b"\0").split(b"\0")
    assert sorted(rows) == sorted(f"row {i}".encode() for i in range(100))
    with pytest.raises(UserError, match=r"data\.text_column must be one of body, id but is 'text'"):
        load_corpus(DataConfig(source="hf", name="some/set"))
    with pytest.raises(UserError, match="must hold text, but row 0 does not"):
        load_corpus(DataConfig(source="hf", name="some/set", text_column="id"))


def test_hugging_face_errors(monkeypatch: pytest.MonkeyPatch, reachable) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'orthon\[datasets\]'"):
        load_corpus(DataConfig(source="hf", name="some/set"))

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match="cannot load the data set some/set: no network"):
        load_corpus(DataConfig(source="hf", name="some/set"))
