"""The settings of the text."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from orthon.train.settings.base import Settings
from orthon.train.settings.key_values import WORDS

SourceName = Literal["stdlib", "text", "hf", "shards"]

# The sources that use a setting, where not all do.
USED_BY: dict[str, tuple[SourceName, ...]] = {
    "paths": ("text", "shards"),
    "name": ("hf",),
    "subset": ("hf",),
    "split": ("hf",),
    "text_column": ("hf",),
    "vocab_size": ("shards",),
}


class DataConfig(Settings):
    """The text. All sources but 'shards' take each byte as a token, and hold out about 5 % for validation."""

    source: SourceName = "stdlib"
    """'stdlib': the source of Python's standard library. 'text': files. 'hf': a Hugging Face data set. 'shards': .bin
    files of tokens."""
    paths: Annotated[tuple[str, ...], WORDS] = ()
    """For 'text' and 'shards': files or directories. Shards with 'val' in their name are held out."""
    name: str | None = None
    """For 'hf': name of the data set, such as 'roneneldan/TinyStories'."""
    subset: str | None = None
    """For 'hf': configuration of the data set, if it has several."""
    split: str = "train"
    """For 'hf': split to read."""
    text_column: str = "text"
    """For 'hf': column that holds the text."""
    vocab_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """For 'shards': number of different tokens. Default: 50304, which is GPT-2's, rounded up."""

    @field_validator("paths")
    @classmethod
    def _make_absolute(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        # A run may be resumed from another working directory.
        return tuple(str(Path(path).absolute()) for path in paths)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        for name, sources in USED_BY.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.source not in sources:
                raise ValueError(
                    f"data.{name} is {value!r}, but only data.source {' or '.join(sources)} uses it "
                    f"and data.source is {self.source}"
                )
        if self.source in USED_BY["paths"] and not self.paths:
            raise ValueError(f"data.paths must name files or directories for data.source {self.source}")
        if self.source == "hf" and not self.name:
            raise ValueError("data.name must name a data set for data.source hf")
        return self
