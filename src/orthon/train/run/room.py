"""Whether a model and a batch can be in this machine's memory at all, asked before anything is made."""

import os

from orthon.train.errors import UserError
from orthon.train.processes.ranks import Processes
from orthon.train.settings.data import MOST_TOKENS
from orthon.train.settings.run import RunConfig

LEAST_VOCABULARY = 256  # that of bytes


def refuse_giants(config: RunConfig, ranks: Processes, *, vocabulary: int = LEAST_VOCABULARY) -> None:
    """Refuse what is certain not to fit. What remains may still be too much: only the least that is needed is counted.

    Args:
        config: settings.
        ranks: who takes part.
        vocabulary: number of different tokens, once the text is known.

    Raises:
        UserError: the vocabulary is larger than any. Or the weights in float32, or the tokens of this process's part of
            a batch, take more than all memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shape = config.model.shape
    vocabulary = max(vocabulary, config.data.vocab_size or 0)
    if vocabulary > MOST_TOKENS:
        raise UserError(f"the vocabulary of the text must be at most {MOST_TOKENS:,} tokens but is {vocabulary:,}")
    weights = 4 * (shape.matrix_weights + 2 * vocabulary * shape.hidden_size)
    if weights > memory:
        of_tokens = f" with {vocabulary:,} tokens" if vocabulary > LEAST_VOCABULARY else ""
        raise UserError(f"the weights of model {config.model.name}{of_tokens} take {_compare(weights, memory)}")
    tokens = 8 * config.batch_size * shape.context // ranks.data_world
    if tokens > memory:
        raise UserError(f"the tokens of a batch of batch_size {config.batch_size} take {_compare(tokens, memory)}")


def _compare(needed: int, memory: int) -> str:
    return f"{needed / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} GB"
