"""Read the text of a run, from whichever source the settings name."""

from orthon.train.settings.data import DataConfig
from orthon.train.text.byte_corpus import byte_corpus
from orthon.train.text.documents import hf_documents, stdlib_documents, text_documents
from orthon.train.text.shards import shard_corpus
from orthon.train.text.tokens import Corpus


def load_corpus(data: DataConfig) -> Corpus:
    """Read the text that the settings name.

    Raises:
        UserError: A path is missing or cannot be read, or there is no text in it.
    """
    if data.source == "shards":
        return shard_corpus(data.paths, data.vocab_size or 50304)
    if data.source == "text":
        return byte_corpus("text files", text_documents(data.paths))
    if data.source == "hf":
        assert data.name is not None
        return byte_corpus(data.name, hf_documents(data.name, data.subset, data.split, data.text_column))
    return byte_corpus("Python's standard library", stdlib_documents())
