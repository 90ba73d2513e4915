"""Read the text of a run, from whichever source the settings name."""

from collections.abc import Collection
from pathlib import Path

from orthon.train.processes.launch import process_rank
from orthon.train.results.console import plain_console
from orthon.train.results.text_progress import text_progress
from orthon.train.settings.data import DataConfig
from orthon.train.text.byte_corpus import byte_corpus
from orthon.train.text.passages import whole
from orthon.train.text.shards import shard_corpus
from orthon.train.text.text_job import open_source
from orthon.train.text.tokenized import tokenized_corpus
from orthon.train.text.tokenizer import open_tokenizer
from orthon.train.text.tokens import Corpus


def load_corpus(data: DataConfig, *, beside: Path | None = None, own: Collection[Path] = ()) -> Corpus:
    """Read the text that the settings name.

    Args:
        data: settings.
        beside: the directory that holds the directory of the run. Tokens that a tokenizer makes are kept there.
        own: directories that the command writes; they are no text.

    Raises:
        UserError: a path is missing or cannot be read, or there is no text in it.
    """
    if data.source == "shards":
        return shard_corpus(
            data.paths,
            data.vocab_size,
            held_out_paths=data.held_out_paths,
            bits=data.token_bits,
            tokenizer=None if data.tokenizer is None else open_tokenizer(data.tokenizer),
        )
    if data.tokenizer is not None:
        assert beside is not None
        # Only rank 0 has a standard output, but any rank may be the one that makes the tokens.
        console = plain_console(stderr=process_rank() > 0)
        return tokenized_corpus(
            data, beside, own, lambda job: text_progress(f"tokenizing {job.source}", job.total, console)
        )
    source, held_out = open_source(data, own)
    held_out_documents = None if held_out is None else whole(held_out.passages())
    return byte_corpus(source.description, whole(source.passages()), held_out_documents)
