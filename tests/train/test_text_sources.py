"""Rows of JSONL, of Parquet and of saved data sets, and passages of long documents."""

import errno
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from orthon.train.errors import UserError
from orthon.train.settings.data import DataConfig
from orthon.train.text.corpus import load_corpus
from orthon.train.text.passages import LONGEST, Passage, cut, in_blocks, passages, whole
from orthon.train.text.split import is_held_out, split
from orthon.train.text.tokens import Piece
from tests.train.support.texts import lines, write_jsonl, write_parquet, write_saved, write_text

TEXTS = [*lines(120), "größer ▁ 😀\n"]


def texts(pieces: tuple[Piece, ...]) -> list[str]:
    return b"".join(piece.tokens.tobytes() for piece in pieces).decode().split("\0")[:-1]


def write(source: str, path: Path, rows: list[str], column: str = "text") -> Path:
    """Write a source. A folder of text files has no columns."""
    if source == "text":
        return write_text(path, rows)
    if source == "jsonl":
        return write_jsonl(path / "rows.jsonl", rows, column).parent
    if source == "parquet":
        return write_parquet(path / "rows.parquet", rows, column).parent
    return write_saved(path, rows, column)


SOURCES = ["text", "jsonl", "parquet", "saved"]


@pytest.fixture(autouse=True)
def needed(request: pytest.FixtureRequest) -> None:
    """What a source needs beyond the extra `train`."""
    names = {"parquet": "pyarrow", "saved": "datasets"}
    source = getattr(request.node, "callspec", None) and request.node.callspec.params.get("source")
    if source in names:
        pytest.importorskip(names[source])


@pytest.mark.parametrize("source", SOURCES)
def test_every_row_is_a_document(tmp_path: Path, source: str) -> None:
    path = write(source, tmp_path / "rows", TEXTS)
    corpus = load_corpus(DataConfig(source=source, paths=(str(path),)))
    train, held_out = texts(corpus.train), texts(corpus.held_out)
    assert sorted(train + held_out) == sorted(TEXTS)
    assert 0 < len(held_out) < 30
    assert "documents" in corpus.description
    assert load_corpus(DataConfig(source=source, paths=(str(path),))).fingerprint == corpus.fingerprint


@pytest.mark.parametrize("source", SOURCES)
def test_the_held_out_part_has_its_own_paths(tmp_path: Path, source: str) -> None:
    path, own = write(source, tmp_path / "rows", TEXTS), write(source, tmp_path / "own", lines(3, seed=1))
    corpus = load_corpus(DataConfig(source=source, paths=(str(path),), held_out_paths=(str(own),)))
    assert texts(corpus.train) == TEXTS
    assert texts(corpus.held_out) == lines(3, seed=1)
    # What is held out is not trained on, even if data.paths name it as well.
    both = DataConfig(source=source, paths=(str(path), str(own)), held_out_paths=(str(own),))
    assert load_corpus(both).fingerprint == corpus.fingerprint
    with pytest.raises(UserError, match="no text in"):
        load_corpus(DataConfig(source=source, paths=(str(own),), held_out_paths=(str(own),)))


@pytest.mark.parametrize("source", SOURCES[1:])
def test_columns(tmp_path: Path, source: str) -> None:
    path = write(source, tmp_path / "rows", TEXTS, column="body")
    corpus = load_corpus(DataConfig(source=source, paths=(str(path),), text_column="body"))
    assert len(texts(corpus.train + corpus.held_out)) == len(TEXTS)
    with pytest.raises(UserError, match=r"data\.text_column must be one of .*body but is 'text'"):
        load_corpus(DataConfig(source=source, paths=(str(path),)))


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = write_saved(tmp_path / "rows", TEXTS, split="test")
    corpus = load_corpus(DataConfig(source="saved", paths=(str(path),), split="test"))
    assert len(texts(corpus.train + corpus.held_out)) == len(TEXTS)
    with pytest.raises(UserError, match=r"data\.split must be one of test in .* but is 'train'"):
        load_corpus(DataConfig(source="saved", paths=(str(path),)))


LINES = [
    (b"{", "line 1, must be JSON but is b'{'"),
    (b'{"text": "a"}\n\n[1]', "line 3, must be a JSON object but is b'[1]'"),
    (b'{"text": 7}', "must hold text, but line 1 does not"),
    (b'{"text": null}', "must hold text, but line 1 does not"),
    (b'{"body": "a"}', "line 1, data.text_column must be one of body but is 'text'"),
    (b"[" * 100_000, "line 1, must be JSON but is b'[["),
    (b"\xff\xfe", "line 1, must be JSON"),
    (b"\n\n", "there is no text in JSONL files"),
    (b'{"text": ""}', "there is no text in JSONL files"),
]


@pytest.mark.parametrize(("content", "message"), LINES)
def test_bad_lines(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_corpus(DataConfig(source="jsonl", paths=(str(tmp_path),)))
    assert message in str(error.value)


def test_odd_lines_that_are_right(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n  \n{"text": "b\\ud800"}\n{"text": "c"}'
    (tmp_path / "rows.jsonl").write_bytes(content)
    corpus = load_corpus(DataConfig(source="jsonl", paths=(str(tmp_path),)))
    assert b"".join(piece.tokens.tobytes() for piece in corpus.train + corpus.held_out) == b"a\0b?\0c\0"


@pytest.mark.parametrize("source", ["parquet", "saved"])
def test_what_is_no_table(tmp_path: Path, source: str) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    message = "cannot read" if source == "parquet" else "must name folders that save_to_disk has written"
    with pytest.raises(UserError, match=message):
        load_corpus(DataConfig(source=source, paths=(str(tmp_path),)))


@pytest.mark.parametrize("source", ["parquet", "saved"])
def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    for module in ("datasets", "pyarrow"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"data\.source {source} needs an extra: pip install 'orthon\[datasets\]'"):
        load_corpus(DataConfig(source=source, paths=(str(tmp_path),)))


LONG = {
    "lines": b"a line\n" * 100_000,
    "words": b"word " * 200_000,
    "neither": b"x" * 1_000_000,
    "characters": "😀".encode() * 200_000,
    "no UTF-8": b"\x80" * 1_000_000,
    "one line, then none": b"\n" + b"x" * 1_000_000,
}


@pytest.mark.parametrize("content", LONG.values(), ids=LONG)
def test_long_documents_are_cut_where_something_ends(content: bytes) -> None:
    parts = list(passages("it", in_blocks(content)))
    assert list(whole(parts)) == [("it", content)]
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(0 < len(part.content) <= LONGEST for part in parts)
    assert sum(part.read for part in parts) == len(content)
    assert list(cut([content])) == [part.content for part in parts]
    if "x" not in content.decode(errors="ignore"):
        assert all(part.content.decode(errors="ignore").encode() in (part.content, b"") for part in parts)
    if b"a line" in content:
        assert all(part.content.endswith(b"\n") for part in parts)


@pytest.mark.parametrize("documents", [1, 3, 19, 25, 400])
def test_the_split_of_passages(documents: int) -> None:
    contents = [(f"file {i}", f"{i} ".encode() * 500 + b"\n") for i in range(documents)]

    def read() -> list[Passage]:
        return [part for name, content in contents for part in passages(name, in_blocks(content))]

    parts = list(split(read))
    held_out = [part for part, out in parts if out]
    text = b"".join(content for _, content in contents)
    assert b"".join(part.content for part, _ in parts) == text
    assert sum(part.read for part, _ in parts) == len(text)
    by_name = documents >= 20 and len({is_held_out(name) for name, _ in contents}) == 2
    if by_name:
        assert all(out == is_held_out(part.name) for part, out in parts)
    else:
        assert [out for _, out in parts] == sorted(out for _, out in parts)
        assert 0.02 < sum(len(part.content) for part in held_out) / len(text) < 0.08


def test_one_line_is_split_too() -> None:
    for content in (b"x" * 1000 + b"\n", "😀".encode() * 250):
        parts = list(split(lambda content=content: passages("it", in_blocks(content))))
        assert [out for _, out in parts] == [False, True]
        assert all(json.dumps(part.content.decode()) for part, _ in parts)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """Also where they lead in a circle, and where one folder has two names."""
    real = write_text(tmp_path / "real", TEXTS)
    folder = write_text(tmp_path / "folder", ["own\n"])
    for name in ("first", "second"):
        (folder / name).symlink_to(real)
    (real / "back").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    write_text(tmp_path / "beside", ["of nobody\n"])
    write_text(folder / ".hidden", ["hidden\n"])
    corpus = load_corpus(DataConfig(source="text", paths=(str(folder),)))
    assert sorted(texts(corpus.train) + texts(corpus.held_out)) == sorted([*TEXTS, "own\n"])


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_text(tmp_path / "folder", TEXTS)
    closed = write_text(folder / "closed", TEXTS)
    scandir = os.scandir

    def refusing(path: str) -> object:  # permissions do not stop root
        if path == str(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=f"data.paths: cannot read {closed}: Permission denied"):
        load_corpus(DataConfig(source="text", paths=(str(folder),)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"text"), "packed by gzip; unpack it"),
        (lzma.compress(b"text"), "packed by xz; unpack it"),
        (b"PK\x03\x04 and so on", "a zip archive; unpack it"),
        ("text".encode("utf-16"), "text in UTF-16; save it in UTF-8"),
    ],
    ids=["gzip", "xz", "zip", "UTF-16"],
)
def test_files_that_are_no_text_of_bytes(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_text(tmp_path / "folder", TEXTS)
    (folder / "other").write_bytes(content)
    with pytest.raises(UserError, match=f"{folder / 'other'} is {message}"):
        load_corpus(DataConfig(source="text", paths=(str(folder),)))


@pytest.mark.parametrize(("source", "kind"), [("text", "file"), ("jsonl", r"\.jsonl file")])
def test_paths_without_such_files(tmp_path: Path, source: str, kind: str) -> None:
    (tmp_path / ".hidden.jsonl").write_text('{"text": "text"}')
    with pytest.raises(UserError, match=f"data.paths hold no {kind}: {tmp_path}"):
        load_corpus(DataConfig(source=source, paths=(str(tmp_path),)))
