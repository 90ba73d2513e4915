"""Tokenizers of the `tokenizers` library: from a JSON file, a folder, or the Hugging Face hub."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orthon.train.errors import UserError
from orthon.train.settings.data import MOST_TOKENS, is_path
from orthon.train.text.hub import hub_file
from orthon.train.text.tokens import as_numbers

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
        """Return the tokens of each content, without special ones. What is not UTF-8 becomes the character U+FFFD.

        Raises:
            UserError: the tokenizer has no token for a part of it.
        """
        texts = [content.decode("utf-8", errors="replace") for content in contents]
        with _refusing(f"data.tokenizer: {self.name} cannot make tokens of the text"):
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens. Those that the tokenizer does not have are left out."""
        known = [token for token in tokens if token < self.vocab_size]
        try:
            text: str = self._library.decode(known, False)
        except BaseException as error:
            _refuse_others(error)
            return as_numbers(tokens)  # a sample is no reason to lose the results of a run
        return text


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Inside the `with` block, errors of the library become a UserError that begins with `what`."""
    try:
        yield
    except BaseException as error:
        _refuse_others(error)
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


def _refuse_others(error: BaseException) -> None:
    """Raise an error again unless it is the library's. It has no kind of its own, and panics are no Exceptions."""
    if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        raise error


def open_tokenizer(name: str, end: str | None = None) -> Tokenizer:
    """Read a tokenizer. Its limits of length, its padding and its dropout are switched off.

    Args:
        name: a JSON file of `tokenizers`, a folder with a `tokenizer.json`, or the name of a model on the hub.
        end: the token after each document. Default: see `ENDS`.

    Raises:
        UserError: there is no such tokenizer, or it has no such token.
    """
    import tokenizers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it would warn at every fork of this process
    path = _find(name)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"data.tokenizer: cannot read {path}: {error.strerror}") from error
    with _refusing(f"data.tokenizer: {path} is no JSON file of the tokenizers library"):
        if len(raw) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        content = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
        library = tokenizers.Tokenizer.from_str(content)
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None) is not None:  # of BPE, which then draws tokens at random
        library.model.dropout = None
    library.encode_special_tokens = True  # "<|endoftext|>" in a document is text, and not its end
    vocabulary: dict[str, int] = library.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise UserError(f"data.tokenizer: {path} has no tokens")
    highest = max(vocabulary.values())
    if highest >= MOST_TOKENS:
        raise UserError(f"data.tokenizer: {path} has token {highest}, but tokens must be below {MOST_TOKENS}")
    if end is not None and end not in vocabulary:
        raise UserError(f"data.document_end must be a token of {name} but is {end!r}")
    ends = ENDS if end is None else (end,)
    found = next((vocabulary[token] for token in ends if token in vocabulary), None)
    return Tokenizer(name, content, found, 1 + highest, library)


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
