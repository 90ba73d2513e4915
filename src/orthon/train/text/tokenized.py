"""A corpus of tokens that a tokenizer has made, kept beside the run."""

from collections.abc import Collection
from pathlib import Path

from orthon.train.settings.data import DataConfig
from orthon.train.text.files import CACHE
from orthon.train.text.text_job import text_job
from orthon.train.text.token_folder import Progress, make_token_folder, shards_of
from orthon.train.text.tokens import Corpus, Piece, amount, count
from orthon.train.text.vocabulary import vocabulary

PER_SHARD = 100_000_000  # tokens, as in modded-nanogpt's shards


def tokenized_corpus(data: DataConfig, beside: Path, own: Collection[Path], progress: Progress) -> Corpus:
    """Return the tokens of the text that the settings name. They are made once for each text and tokenizer.

    Args:
        data: settings, with a tokenizer.
        beside: the directory that holds the directory of the run.
        own: directories that the command writes; they are no text.
        progress: shows how far it is.

    Raises:
        UserError: the text, the tokenizer or what is kept cannot be read.
    """
    job = text_job(data, per_shard=PER_SHARD, own=own)
    size = vocabulary(data.vocab_size, job.tokenizer)
    assert size is not None  # there is a tokenizer
    folder = beside / CACHE / job.key
    # Each process of a run comes here. One makes the tokens, and those on the same disk wait for it.
    note = make_token_folder(folder, job, progress, wait=True)
    train, held_out = (
        tuple(Piece(str(shard.path), shard.tokens) for shard in part) for part in shards_of(folder, note)
    )
    return Corpus(
        description=(
            f"{job.source}, {amount(count(train))} tokens of {job.tokenizer.name}; "
            f"held out: {amount(count(held_out))} tokens"
        ),
        train=train,
        held_out=held_out,
        vocab_size=size,
        fingerprint=note.fingerprint,
        decode=job.tokenizer.decode,
    )
