"""`orthon tokenize`: make tokens of a large text once, for many runs."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import BeforeValidator, Field

from orthon.train.errors import UserError
from orthon.train.processes.launch import processes
from orthon.train.results.console import plain_console
from orthon.train.results.text_progress import text_progress
from orthon.train.settings.base import Settings
from orthon.train.settings.data import DataConfig
from orthon.train.settings.numbers import whole
from orthon.train.settings.paths import AnyPath
from orthon.train.settings.run import section
from orthon.train.text.text_job import text_job
from orthon.train.text.token_folder import make_token_folder, part_of
from orthon.train.text.tokenized import PER_SHARD
from orthon.train.text.tokenizer import FILE
from orthon.train.text.tokens import amount


class TokenizeCommand(Settings):
    """The words of `orthon tokenize`."""

    out: AnyPath = Path("tokens")
    """Directory for the shards. It must not exist. Until it is whole it has the suffix .part; an interrupted command,
    called again, goes on there."""
    shard_tokens: Annotated[int, BeforeValidator(whole), Field(ge=1, le=2**31 - 1)] = PER_SHARD
    """Tokens in one shard."""
    data: Annotated[DataConfig, section("data", DataConfig)] = DataConfig()


def tokenize(*, command: Annotated[TokenizeCommand, Parameter(name="*")] = TokenizeCommand()) -> None:  # noqa: B008  # frozen
    """Write shards of tokens, and say how to train on them.

    Raises:
        UserError: the settings cannot be used, or the directory holds something else.
    """
    data, out = command.data, command.out
    if processes() > 1:
        raise UserError("tokenize works in one process; call it without torchrun")
    if data.source == "shards":
        raise UserError("data.source must be text for tokenize, and not shards, which hold tokens already")
    if data.tokenizer is None:
        raise UserError("tokenize needs --data.tokenizer: a tokenizer's JSON file, a folder, or a name on the hub")
    if data.vocab_size is not None:
        raise UserError("data.vocab_size has no effect on tokens; leave it out here, and give it to orthon train")
    console = plain_console()
    job = text_job(data, per_shard=command.shard_tokens, own=[out, part_of(out)])

    note = make_token_folder(
        out, job, lambda job: text_progress(f"tokenizing {job.source}", job.total, console), wait=False
    )
    paths = f"--data.paths {shlex.quote(str(out))} --data.tokenizer {shlex.quote(str(out / FILE))}"
    console.print(
        f"{out} holds {amount(note.train)} tokens of {job.form.bits} bits, "
        f"and {amount(note.held_out)} that are held out\n"
        f"train on them with: orthon train --data.source shards {paths}",
        soft_wrap=True,
    )
