"""Tokenizers of the `tokenizers` library: from a JSON file, a folder, or the Hugging Face hub."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orthon.train.errors import UserError
from orthon.train.settings.data import is_path
from orthon.train.text.hub import hub_file

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
LARGEST = 2**27  # bytes of it; the largest that are in use have 40 MB

# Tokens that end a document in the tokenizers of GPT-2, LLaMA 3, LLaMA 2, Gemma and DeepSeek. The first that is there.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")


@dataclass(frozen=True)
class Tokenizer:
    """Makes tokens of text, and text of tokens.

    Attributes:
        name: as the settings have it.
        content: of its JSON file.
        end: the token after each document, or None.
        vocab_size: one more than the highest token.
    """

    name: str
    content: str
    end: int | None
    vocab_size: int
    _library: "tokenizers.Tokenizer"

    @property
    def digest(self) -> str:
        """Equal for tokenizers that make the same tokens of all documents."""
        return hashlib.blake2b(f"{self.end} {self.content}".encode(), digest_size=16).hexdigest()

    def encode(self, contents: Sequence[bytes]) -> list[NDArray[np.uint32]]:
        """The tokens of each content, without special ones. What is not UTF-8 becomes the character U+FFFD."""
        texts = [content.decode("utf-8", errors="replace") for content in contents]
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens. Those that the tokenizer does not have are left out."""
        text: str = self._library.decode([token for token in tokens if token < self.vocab_size], False)
        return text


def open_tokenizer(name: str, end: str | None = None) -> Tokenizer:
    """Read a tokenizer. Its own limits of length and its padding are switched off.

    Args:
        name: A JSON file of `tokenizers`, a folder with a `tokenizer.json`, or the name of a model on the hub.
        end: The token after each document. Default: see `ENDS`.

    Raises:
        UserError: There is no such tokenizer, or it has no such token.
    """
    import tokenizers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it would warn at every fork of this process
    path = _find(name)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        content = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
        library = tokenizers.Tokenizer.from_str(content)
    except OSError as error:
        raise UserError(f"data.tokenizer: cannot read {path}: {error.strerror}") from error
    except Exception as error:  # the library has no kind of its own
        reason = " ".join(str(error).split())
        raise UserError(f"data.tokenizer: {path} is no JSON file of the tokenizers library: {reason}") from error
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # "<|endoftext|>" in a document is text, and not its end
    vocabulary: dict[str, int] = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise UserError(f"data.tokenizer: {path} has no tokens")
    if end is not None and end not in vocabulary:
        raise UserError(f"data.document_end must be a token of {name} but is {end!r}")
    ends = ENDS if end is None else (end,)
    found = next((vocabulary[token] for token in ends if token in vocabulary), None)
    return Tokenizer(name, content, found, 1 + max(vocabulary.values()), library)


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(
                f"data.tokenizer: the folder {path} has no {FILE}; transformers writes one by "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        return path / FILE
    if path.exists():
        return path
    if is_path(name):
        raise UserError(f"data.tokenizer: there is no file or directory {path}")
    return hub_file(name, FILE)
