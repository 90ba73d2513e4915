"""`orthon train`: one run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import model_validator
from rich.console import Console

from orthon.saving.shown import printable
from orthon.train.checkpoints.newest import newest_checkpoint
from orthon.train.checkpoints.restore import refuse_differences
from orthon.train.errors import UserError
from orthon.train.processes.lock import alone_in
from orthon.train.processes.ranks import Processes, join_ranks
from orthon.train.results.console import plain_console
from orthon.train.results.directory import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PLOT,
    SAMPLE,
    TENSORBOARD,
    read_summary,
    refuse_existing,
)
from orthon.train.results.strange_parts import refuse_strange_parts
from orthon.train.run.room import refuse_giants
from orthon.train.run.run import Run
from orthon.train.settings.base import Settings
from orthon.train.settings.file import as_plain, flatten, read_config, settings_over_file
from orthon.train.settings.paths import AnyPath, as_path
from orthon.train.settings.run import TrainConfig
from orthon.train.step.optimizers import settle
from orthon.train.step.trial import try_options
from orthon.train.text.corpus import load_corpus
from orthon.train.text.tokens import Corpus

AUTO = "auto"


class TrainCommand(Settings):
    """The words of `orthon train`."""

    out: AnyPath | None = None
    """Directory for the results, new or empty. Default: runs/OPTIMIZER-MODEL, such as runs/dion-1M."""
    config: AnyPath | None = None
    """YAML file with settings. Flags override it."""
    resume: str | None = None
    """Directory of a run to continue. Its settings hold, and flags may change a few of them, such as --steps. 'auto':
    continue the run in --out if it has begun, else begin it, so that one command line serves for the start and for
    every restart."""
    settings: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, given: dict[str, Any]) -> dict[str, Any]:
        path, resume = given.get("config"), given.get("resume")
        if resume not in (None, AUTO):
            directory = as_path("resume", resume)
            refuse_strange_parts(directory)
            path = directory / CONFIG
        return given if path is None else settings_over_file(given, as_path("config", path), TrainConfig)


def train(*, command: Annotated[TrainCommand, Parameter(name="*")] = TrainCommand()) -> None:  # noqa: B008  # frozen
    """Train, and say where the results are.

    Raises:
        UserError: the settings cannot be used; nothing has been written.
        TrainingError: the loss or a gradient is not finite, or the last checkpoint could not be written.
    """
    console = plain_console()
    say = partial(console.print, soft_wrap=True)
    ranks = join_ranks(command.settings)
    with alone_in(_directory(command), ranks, say):
        _train(command, ranks, console, say)


def _train(command: TrainCommand, ranks: Processes, console: Console, say: Callable[[str], None]) -> None:
    config, directory, corpus, steps_before = ranks.together(lambda: _prepare(command, ranks))
    checkpoint, complete = None, ""
    if steps_before is not None:
        checkpoint = newest_checkpoint(directory, ranks, say, required=command.resume != AUTO)
    if checkpoint is not None:
        done = checkpoint.manifest.step
        if config.steps < done or (config.steps == done and steps_before != done):
            raise UserError(f"steps must be above the {done} that are done in {directory} but is {config.steps}")
        if done == config.steps and ranks.on_main(lambda: read_summary(directory)):
            complete = f"the run in {directory} is complete: all of its {done} steps are done"
    if complete and command.resume == AUTO:  # a job queue calls again and again, and need not wait for the model
        say(complete)
        return
    run = Run(config, directory, corpus, checkpoint, ranks)  # refuses a checkpoint that does not fit
    if complete:
        say(complete)
        return

    say(run.describe())
    summary = run.train(console)
    if summary is None:
        say(
            f"stopped after step {run.training.step} of {run.config.steps}; "
            f"go on with: orthon train --resume {quote(str(run.directory))}"
        )
        return
    if summary.sample:
        say(f"\n{printable(summary.sample)}\n")
    say(
        f"held-out loss {summary.val_loss:.4f} nats per token after {summary.steps} steps\n"
        f"{summary.seconds:.1f} s of training, {summary.optimizer_share:.1%} of them in the optimizer, "
        f"which keeps {summary.state_bytes / 1e6:.2f} MB of state\n"
        f"results in {run.directory}: {PLOT}, {SAMPLE}, {METRICS}, {TENSORBOARD}, {CHECKPOINTS}"
    )


def _directory(command: TrainCommand) -> Path:
    """Return where the run is, or will be."""
    if command.resume is not None and command.resume != AUTO:
        return as_path("resume", command.resume)
    config = command.settings
    return command.out or Path("runs") / f"{config.optimizer.name}-{config.model.name}"


def _prepare(command: TrainCommand, ranks: Processes) -> tuple[TrainConfig, Path, Corpus, int | None]:
    """Return settings, directory and text of the run; and if it has begun, the number of steps that it was to have."""
    config, directory = command.settings, _directory(command)
    refuse_giants(config, ranks)
    if command.resume in (None, AUTO):
        # With every default filled in, so that a later version with other defaults does not change this run.
        config = config.model_copy(update={"optimizer": settle(config.optimizer)})
        if command.resume == AUTO:
            refuse_strange_parts(directory)
        if command.resume is None or not (directory / CONFIG).exists():
            refuse_existing(directory)
            try_options(config.optimizer, ranks)
            return config, directory, _corpus(config, directory, ranks), None
    elif command.out is not None or command.config is not None:
        raise UserError("--resume goes on in its own directory with its own settings: no --out or --config")
    before = flatten(as_plain(read_config(directory / CONFIG, TrainConfig)))
    refuse_differences(before, config, f"the run in {directory}")
    try_options(config.optimizer, ranks)
    return config, directory, _corpus(config, directory, ranks), before["steps"]


def _corpus(config: TrainConfig, directory: Path, ranks: Processes) -> Corpus:
    corpus = load_corpus(config.data, beside=directory.parent, own=[directory])
    refuse_giants(config, ranks, vocabulary=corpus.vocab_size)
    return corpus
