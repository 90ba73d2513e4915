"""The settings of the text."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from orthon.train.settings.base import Settings
from orthon.train.settings.key_values import WORDS
from orthon.train.settings.numbers import of_word, whole
from orthon.train.settings.paths import as_path

SourceName = Literal["stdlib", "text", "jsonl", "parquet", "saved", "hf", "shards"]

MOST_TOKENS = 2**20  # in a vocabulary

# The sources that use a setting, where not all do.
USED_BY: dict[str, tuple[SourceName, ...]] = {
    "paths": ("text", "jsonl", "parquet", "saved", "shards"),
    "held_out_paths": ("text", "jsonl", "parquet", "saved", "shards"),
    "name": ("hf",),
    "subset": ("hf",),
    "split": ("hf", "saved"),
    "text_column": ("hf", "jsonl", "parquet", "saved"),
    "token_bits": ("shards",),
}


def is_path(tokenizer: str) -> bool:
    """Return whether a word for a tokenizer is a path, and not the name of a model on the hub."""
    return tokenizer.startswith((".", "/", "~")) or tokenizer.endswith(".json") or Path(tokenizer).exists()


class DataConfig(Settings):
    """The text. Without a tokenizer each byte of it is a token. About 5 % are held out for validation."""

    source: SourceName = "stdlib"
    """'stdlib': the source of Python's standard library. 'text': files. 'jsonl', 'parquet': files with a text in each
    row. 'saved': folders of save_to_disk. 'hf': a Hugging Face data set. 'shards': .bin files of tokens."""
    paths: Annotated[tuple[str, ...], WORDS] = ()
    """For all sources but 'stdlib' and 'hf': files or directories. Shards with 'val' in their name are held out."""
    held_out_paths: Annotated[tuple[str, ...] | None, WORDS] = None
    """Files or directories to hold out. All in data.paths that is not in them is then trained on."""
    name: str | None = None
    """For 'hf': name of the data set, such as 'roneneldan/TinyStories'."""
    subset: str | None = None
    """For 'hf': configuration of the data set, if it has several."""
    split: str = "train"
    """For 'hf' and 'saved': split to read, if there are several."""
    text_column: str = "text"
    """For 'hf', 'jsonl', 'parquet' and 'saved': column that holds the text."""
    tokenizer: str | None = None
    """Makes tokens of the text: a JSON file of the tokenizers library, a folder with a tokenizer.json, or the name of a
    model on the Hugging Face hub. The tokens are kept beside the run. For 'shards': shows the sample as text."""
    document_end: str | None = None
    """For a tokenizer: token after each document. Default: '<|endoftext|>' or its like, if the tokenizer has one."""
    token_bits: Annotated[Literal[16, 32] | None, BeforeValidator(of_word)] = None
    """For 'shards': bits of a token in files without a header. Default: 16."""
    vocab_size: Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST_TOKENS)] | None = None
    """For 'shards' or a tokenizer: number of different tokens. Default: that of the tokenizer, rounded up to a multiple
    of 64; for shards that in the header, else 50304 for 16-bit and 128256 for 32-bit tokens."""

    @field_validator("paths", "held_out_paths")
    @classmethod
    def _make_absolute(cls, paths: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        # A run may be resumed from another working directory.
        name = f"data.{info.field_name}"
        return None if paths is None else tuple(str(as_path(name, path).absolute()) for path in paths)

    @field_validator("tokenizer")
    @classmethod
    def _make_tokenizer_absolute(cls, tokenizer: str | None) -> str | None:
        if not tokenizer or not is_path(tokenizer):
            return tokenizer
        return str(as_path("data.tokenizer", tokenizer).absolute())

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        for name, sources in USED_BY.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.source not in sources:
                *others, last = sources
                words = f"{', '.join(others)} or {last}" if others else last
                raise ValueError(
                    f"data.{name} is {value!r}, but only data.source {words} uses it and data.source is {self.source}"
                )
        if self.source in USED_BY["paths"] and not self.paths:
            raise ValueError(f"data.paths must name files or directories for data.source {self.source}")
        if self.held_out_paths == ():
            raise ValueError("data.held_out_paths must name files or directories, or be left out")
        if self.source == "hf" and not self.name:
            raise ValueError("data.name must name a data set for data.source hf")
        return self

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Self:
        if self.tokenizer == "":
            raise ValueError("data.tokenizer must be a file, a folder or a name but is ''")
        if self.vocab_size is not None and self.source != "shards" and self.tokenizer is None:
            raise ValueError(
                f"data.vocab_size is {self.vocab_size}, but only data.source shards uses it, or data.tokenizer"
            )
        if self.document_end is not None and (self.tokenizer is None or self.source == "shards"):
            raise ValueError(
                f"data.document_end is {self.document_end!r}, but only data.tokenizer uses it, where there is text"
            )
        return self
