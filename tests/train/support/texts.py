"""Small texts and tokenizers, in every form that the trainer reads."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "to", "see", "what", "was", "there")


def lines(number: int, seed: int = 0, words: int = 40) -> list[str]:
    """Texts of random words."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, words)) + f" {i}\n" for i in range(number)]


def write_tokenizer(path: Path, *, end: str | None = "<|endoftext|>", extra_tokens: int = 0) -> Path:
    """A byte-level BPE tokenizer of 300 tokens, and as many more as are wanted."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[end] if end else [],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(50), trainer)
    tokenizer.add_tokens([f"extra{i}" for i in range(extra_tokens)])
    # Both are common in files from the hub, and neither may shorten a text.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    return path


def write_text(folder: Path, texts: Sequence[str]) -> Path:
    """A folder with a file for each text."""
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder


def write_jsonl(path: Path, texts: Sequence[str], column: str = "text") -> Path:
    """A file with a line for each text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_parquet(path: Path, texts: Sequence[str], column: str = "text") -> Path:
    """A file with a row for each text."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"id": list(range(len(texts))), column: list(texts)})
    parquet.write_table(table, path, row_group_size=100)
    return path


def write_saved(folder: Path, texts: Sequence[str], column: str = "text", split: str | None = None) -> Path:
    """A folder of save_to_disk."""
    import datasets

    rows = datasets.Dataset.from_dict({column: list(texts)})
    datasets.disable_progress_bars()
    (rows if split is None else datasets.DatasetDict({split: rows})).save_to_disk(str(folder))
    return folder


def write_shard(
    path: Path, tokens: Sequence[int], *, bits: int = 16, magic: int | None = None, version: int = 1
) -> Path:
    """A file of tokens, with a header if there is a magic number."""
    numbers = np.zeros(256, "<i4")
    if magic is not None:
        numbers[:3] = magic, version, len(tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"" if magic is None else numbers.tobytes()) + np.array(tokens, f"<u{bits // 8}").tobytes())
    return path
