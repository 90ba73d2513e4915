"""The size of the vocabulary that a model is built for."""

from orthon.train.errors import UserError
from orthon.train.text.tokenizer import Tokenizer

MULTIPLE = 64  # the size of the tiles that GPUs multiply by


def beyond(name: str, token: int, size: int) -> str:
    """Return what to say of a text with a token that the vocabulary does not have."""
    return (
        f"{name} holds token {token}, but the vocabulary has {size} tokens, from 0 on; "
        f"a larger --data.vocab-size makes room"
    )


def vocabulary(given: int | None, tokenizer: Tokenizer | None) -> int | None:
    """Return the size that the settings give; else that of the tokenizer, rounded up; None if there is neither.

    Raises:
        UserError: the size that is given is too small for the tokenizer.
    """
    if tokenizer is None:
        return given
    if given is not None and given < tokenizer.vocab_size:
        raise UserError(
            f"data.vocab_size must be at least the {tokenizer.vocab_size} of data.tokenizer {tokenizer.name} "
            f"but is {given}"
        )
    return given or -(-tokenizer.vocab_size // MULTIPLE) * MULTIPLE
