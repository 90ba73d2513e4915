"""Which files of tokens are read, how, and which are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from orthon.train.commands.main import main
from orthon.train.errors import UserError
from orthon.train.settings.data import DataConfig
from orthon.train.text.corpus import load_corpus
from orthon.train.text.shards import open_shard
from tests.train.support.texts import write_shard

GPT2, LLAMA3 = 20240520, 20240801
TOKENS = np.random.default_rng(0).integers(0, 50257, 3000)
LARGE = np.random.default_rng(1).integers(0, 128256, 3000)


@pytest.mark.parametrize(
    ("bits", "magic", "version", "vocab_size"),
    [(16, GPT2, 1, 50304), (32, LLAMA3, 7, 128256), (16, None, 0, 50304), (32, None, 0, 128256)],
)
def test_known_formats(tmp_path: Path, bits: int, magic: int | None, version: int, vocab_size: int) -> None:
    tokens = LARGE if bits == 32 else TOKENS
    for name in ("train.bin", "val.bin"):
        write_shard(tmp_path / name, tokens, bits=bits, magic=magic, version=version)
    token_bits = 32 if (bits, magic) == (32, None) else None
    corpus = load_corpus(DataConfig(source="shards", paths=(str(tmp_path),), token_bits=token_bits))
    assert corpus.train[0].tokens.tolist() == corpus.held_out[0].tokens.tolist() == tokens.tolist()
    assert isinstance(corpus.train[0].tokens, np.memmap)
    assert corpus.vocab_size == vocab_size
    said = f"2 shards without a header, read as {bits}-bit tokens"
    assert (said in corpus.description) == (magic is None)


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_another_content_is_another_text(tmp_path: Path, place: int) -> None:
    """A run goes on with no shard that was made anew under the same name. A sample of the tokens tells."""
    tokens, found = np.arange(100_000) % 256, set()
    for changed in (tokens, np.where(np.arange(100_000) == place, 7, tokens)):
        for name in ("train.bin", "val.bin"):
            write_shard(tmp_path / name, changed, bits=16, magic=GPT2, version=1)
        found.add(load_corpus(DataConfig(source="shards", paths=(str(tmp_path),))).fingerprint)
    assert len(found) == 2


def numbers(*first: int, order: str = "<", rest: int = 0) -> bytes:
    header = np.full(256, rest, f"{order}i4")
    header[: len(first)] = first
    return header.tobytes() + TOKENS.astype("<u2").tobytes()


def of_numpy() -> bytes:
    file = io.BytesIO()
    np.save(file, TOKENS)
    return file.getvalue()


def of_torch() -> bytes:
    file = io.BytesIO()
    torch.save(torch.tensor(TOKENS), file)
    return file.getvalue()


# What the file is, its content, and what is said.
REFUSED = [
    ("another version of GPT-2's", numbers(GPT2, 2, 3000), "has version 2 of the shard format, but only 1 is read"),
    ("another version of LLaMA-3's", numbers(LLAMA3, 1, 3000), "has version 1 of the shard format, but only 7 is read"),
    ("LLaMA-3's with 16-bit tokens", numbers(LLAMA3, 7, 3000), "its header says 3000 tokens, but it holds 1500"),
    ("GPT-2's with 32-bit tokens", numbers(GPT2, 1, 1500), "its header says 1500 tokens, but it holds 3000"),
    ("a negative number", numbers(GPT2, 1, -1), "its header says -1 tokens"),
    ("cut within its header", numbers(GPT2, 1, 3000)[:1000], "it ends within its header"),
    (
        "llm.c's evaluations",
        numbers(20240522, 1, 3000),
        "unknown header with magic number 20240522; known are 20240520",
    ),
    ("llm.c's weights", numbers(20240326, 3, 1024, rest=7), "unknown header with magic number 20240326"),
    ("a date to come", numbers(20310101, 1, 3000, rest=9), "unknown header with magic number 20310101"),
    ("no date, and zeros", numbers(-559038737, 5, 3000), "unknown header with magic number -559038737"),
    ("big-endian", numbers(GPT2, 1, 3000, order=">"), "unknown header with big-endian magic number 20240520"),
    ("numpy", of_numpy(), "is no token shard but a file of numpy.save"),
    ("torch", of_torch(), "is no token shard but a zip archive"),
    ("gzip", b"\x1f\x8b" + bytes(5000), "is no token shard but a gzip file"),
    ("Parquet", b"PAR1" + bytes(5000), "is no token shard but a Parquet file"),
    ("Megatron's index", b"MMIDIDX\0\0" + bytes(5000), "is no token shard but an index of Megatron-LM"),
    ("an odd length", b"odd", "3 bytes are no whole number of uint16 tokens"),
    ("32 bits, unsaid", LARGE.astype("<u4").tobytes(), "its tokens look like 32-bit ones; write --data.token-bits 32"),
    ("32 bits, small", TOKENS.astype("<u4").tobytes(), "its tokens look like 32-bit ones; write --data.token-bits 32"),
]


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_others_are_refused(tmp_path: Path, fails, content: bytes, message: str) -> None:
    write_shard(tmp_path / "val.bin", TOKENS)
    (tmp_path / "train.bin").write_bytes(content)
    words = ("train", "--data.source", "shards", "--data.paths", tmp_path, "--out", tmp_path / "run")
    said = fails(*words)
    assert f"{tmp_path / 'train.bin'} " in said
    assert message in said


@pytest.mark.parametrize("first", [[100, 318, 262], [5, 309, 7, 1], [318] * 600, [0] * 8, list(range(9)), [0, 65535]])
def test_no_header_is_taken_for_one(tmp_path: Path, first: list[int]) -> None:
    """318 is " is" in GPT-2's tokenizer: with a token before it, it reads as a date."""
    for rest in ([], TOKENS.tolist()):
        path = write_shard(tmp_path / "train.bin", [*first, *rest])
        assert open_shard(path).tokens.tolist() == [*first, *rest]


def test_16_bits_are_read_if_that_is_said(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train.bin", [9, 0, 500, 0] * 100)
    with pytest.raises(UserError, match="look like 32-bit ones"):
        open_shard(path)
    assert open_shard(path, 16).tokens.tolist() == [9, 0, 500, 0] * 100
    assert open_shard(path, 32).tokens.tolist() == [9, 500] * 100


def test_own_paths_for_the_held_out_shards(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "val_c")):
        write_shard(tmp_path / f"{name}.bin", [number] * 50)
    data = DataConfig(source="shards", paths=(str(tmp_path),), held_out_paths=(str(tmp_path / "a.bin"),))
    corpus = load_corpus(data)
    assert [piece.tokens[0] for piece in corpus.train] == [1, 2]
    assert [piece.tokens[0] for piece in corpus.held_out] == [0]
    with pytest.raises(UserError, match=r"data\.held_out_paths: there is no file or directory"):
        load_corpus(DataConfig(source="shards", paths=(str(tmp_path),), held_out_paths=("missing",)))
    with pytest.raises(UserError, match=r"data\.paths hold no training shard: no \.bin file in"):
        load_corpus(DataConfig(source="shards", paths=(str(tmp_path),), held_out_paths=(str(tmp_path),)))


def test_bits_on_the_command_line(tmp_path: Path, tiny: list[str]) -> None:
    """The option that the error about 32-bit tokens names does what it says."""
    for name in ("train.bin", "val.bin"):
        write_shard(tmp_path / name, TOKENS, bits=32, magic=None, version=0)
    words = [word for word in tiny if not word.startswith("--data")]
    words += ["--steps=1", "--data.source=shards", f"--data.paths={tmp_path}", f"--out={tmp_path / 'run'}"]
    assert main(["train", *words, "--data.token-bits", "32", "--data.vocab-size", "1e5"]) == 0


@pytest.mark.parametrize(
    ("vocabulary", "words", "message"),
    [
        (2**31 - 1, [], "the vocabulary of the text must be at most 1,048,576 tokens but is 2,147,483,647"),
        (2**20, ["--model.hidden-size=1048576"], "0.02M with 1,048,576 tokens take 8,796 GB, but this machine has "),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_giant_vocabularies(
    tmp_path: Path, tiny: list[str], fails, monkeypatch, command: str, vocabulary: int, words: list[str], message: str
) -> None:
    shape = "orthon.train.settings.model.Shape.matrix_weights"
    monkeypatch.setattr(shape, property(lambda _: 20_000))  # so that only the vocabulary counts
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(numbers(GPT2, 1, len(TOKENS), vocabulary))
    words = [*tiny[:-2], *words, "--data.source=shards", f"--data.paths={tmp_path}", f"--out={tmp_path / 'run'}"]
    assert message in fails(command, *words)
    assert not (tmp_path / "run").exists()


def test_training_on_32_bit_tokens(tmp_path: Path, tiny: list[str]) -> None:
    small = np.random.default_rng(2).integers(70000, 70100, 3000)
    for name in ("train.bin", "val.bin"):
        write_shard(tmp_path / name, small, bits=32, magic=LLAMA3, version=7)
    words = [*tiny[:-2], "--data.source=shards", f"--data.paths={tmp_path}", "--steps=2", f"--out={tmp_path / 'run'}"]
    assert main(["train", *words, "--data.vocab-size=70100"]) == 0
