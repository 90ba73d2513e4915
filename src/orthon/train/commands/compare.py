"""`orthon compare`: several optimizers on the same text, in a table and a picture."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import model_validator
from rich.console import Console

from orthon.saving.shown import printable
from orthon.train.checkpoints.newest import newest_checkpoint
from orthon.train.checkpoints.restore import PLACES
from orthon.train.commands.comparison import Planned, plan
from orthon.train.commands.comparison_report import (
    Result,
    best_of_each,
    show_table,
    sweep_lines,
    target_loss,
    write_markdown,
)
from orthon.train.errors import DivergedError, TrainingError, UserError
from orthon.train.processes.lock import alone_in
from orthon.train.processes.ranks import Processes, join_ranks
from orthon.train.results.console import plain_console
from orthon.train.results.directory import CONFIG, Summary, holds_nothing, named, read_summary, write_summary
from orthon.train.results.metrics import read_metrics
from orthon.train.results.strange_parts import refuse_strange_folder, refuse_strange_parts
from orthon.train.run.room import refuse_giants
from orthon.train.run.run import Run
from orthon.train.settings.base import Settings
from orthon.train.settings.file import as_plain, flatten, read_config, settings_over_file
from orthon.train.settings.paths import AnyPath, as_path
from orthon.train.settings.run import CompareConfig, TrainConfig
from orthon.train.step.trial import try_options
from orthon.train.text.corpus import load_corpus
from orthon.train.text.files import CACHE
from orthon.train.text.tokens import Corpus

PICTURE = "comparison.png"
TABLE = "comparison.md"


class CompareCommand(Settings):
    """The words of `orthon compare`."""

    out: AnyPath = Path("runs/compare")
    """Directory for the results. Each run has a directory in it."""
    config: AnyPath | None = None
    """YAML file with settings. Flags override it."""
    settings: Annotated[CompareConfig, Parameter(name="*")] = CompareConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, given: dict[str, Any]) -> dict[str, Any]:
        path = given.get("config")
        return given if path is None else settings_over_file(given, as_path("config", path), CompareConfig)


def compare(*, command: Annotated[CompareCommand, Parameter(name="*")] = CompareCommand()) -> None:  # noqa: B008  # frozen
    """Do the runs that are missing, and show the results of all.

    Raises:
        UserError: the settings cannot be used, or do not fit the runs that are there; nothing is written.
    """
    console = plain_console()
    ranks = join_ranks(command.settings)
    with alone_in(command.out, ranks, partial(console.print, soft_wrap=True)):
        _compare(command, ranks, console)


def _compare(command: CompareCommand, ranks: Processes, console: Console) -> None:
    planned, corpus = ranks.together(lambda: _prepare(command, ranks))
    done = ranks.on_main(lambda: [_summary(one, corpus) for one in planned])
    ranks.on_main(lambda: [read_metrics(one.directory) for one in planned])  # refuses damage before any run
    console.print(
        f"{len(planned)} runs, {len(planned) - done.count(None)} already done; text: {corpus.description}",
        soft_wrap=True,
    )

    results = []
    for number, (one, summary) in enumerate(zip(planned, done, strict=True), start=1):
        if summary is None:
            console.print(f"[{number}/{len(planned)}] {one.label}, lr {one.lr:g}", soft_wrap=True)
            summary = _train(one, corpus, ranks, console)
        if summary is None:
            console.print("stopped; the same command goes on from here")
            return
        records = ranks.on_main(lambda one=one: read_metrics(one.directory))  # type: ignore[misc]
        results.append(Result(one.label, one.lr, summary, records))
    ranks.on_main(lambda: _finish(results, command, console))


def _prepare(command: CompareCommand, ranks: Processes) -> tuple[list[Planned], Corpus]:
    """Return the runs and their text."""
    refuse_giants(command.settings, ranks)
    if (command.out / CONFIG).exists():
        raise UserError(f"{command.out} holds a run of its own; choose another --out")
    refuse_strange_folder(command.out / CACHE)
    planned = plan(command.settings, command.out)
    for one in planned:
        try_options(one.config.optimizer, ranks)
    corpus = load_corpus(command.settings.data, beside=command.out, own=[command.out])
    refuse_giants(command.settings, ranks, vocabulary=corpus.vocab_size)
    return planned, corpus


def _summary(one: Planned, corpus: Corpus) -> Summary | None:
    """Return the summary of a run, or None if the run has not begun or is not complete.

    Raises:
        UserError: its directory holds another run, or files that belong to no run.
    """
    refuse_strange_folder(one.directory)
    refuse_strange_parts(one.directory)
    if not one.directory.exists() or holds_nothing(one.directory):
        return None
    if not (one.directory / CONFIG).exists():
        raise UserError(f"{one.directory} is not empty, but holds no run; choose another --out")
    before = flatten(as_plain(read_config(one.directory / CONFIG, TrainConfig)))
    now = flatten(as_plain(one.config))
    for name in sorted(before.keys() | now.keys()):
        if name not in PLACES and before.get(name) != now.get(name):
            raise UserError(
                f"{one.directory} holds a run with {name} {before.get(name)}, not {now.get(name)}; choose another --out"
            )
    summary = read_summary(one.directory)
    if summary is not None and summary.corpus != corpus.fingerprint:
        raise UserError(f"{one.directory} holds a run on another text; choose another --out")
    return summary


def _train(one: Planned, corpus: Corpus, ranks: Processes, console: Console) -> Summary | None:
    with alone_in(one.directory, ranks, partial(console.print, soft_wrap=True)):
        return _train_alone(one, corpus, ranks, console)


def _train_alone(one: Planned, corpus: Corpus, ranks: Processes, console: Console) -> Summary | None:
    checkpoint = newest_checkpoint(one.directory, ranks, partial(console.print, soft_wrap=True))
    run = Run(one.config, one.directory, corpus, checkpoint, ranks)
    try:
        return run.train(console)
    except DivergedError as error:  # that a learning rate is too high is a result
        console.print(str(error), soft_wrap=True)
        summary = Summary(
            steps=run.training.step,
            val_loss=math.inf,
            seconds=run.training.clock.seconds,
            optimizer_share=math.nan,
            state_bytes=run.training.optimizers.state_bytes(),
            corpus=corpus.fingerprint,
            sample="",
        )
        ranks.on_main(lambda: write_summary(one.directory, summary))
        return summary


def _finish(results: list[Result], command: CompareCommand, console: Console) -> None:
    """Show and write the results.

    Raises:
        TrainingError: the disk is full, or has another fault.
    """
    try:
        _report(results, command, console)
    except OSError as error:
        raise TrainingError(
            f"{error.filename}: {error.strerror}; all runs are done and saved: the same command writes the results"
        ) from error


def _report(results: list[Result], command: CompareCommand, console: Console) -> None:
    from orthon.train.results.plots import (
        plot_comparison,  # here: matplotlib takes long to import, and rank 0 alone plots
    )

    settings = command.settings
    best = best_of_each(results)
    target = settings.target if settings.target is not None else target_loss(best)
    console.print("\n".join(["", *sweep_lines(results)]), soft_wrap=True)
    show_table(console, best, target)
    with named(command.out / TABLE):
        write_markdown(command.out / TABLE, best, target)
    title = f"LLaMA {settings.model.name}, {settings.steps} steps of {settings.batch_size} sequences"
    with named(command.out / PICTURE):
        plot_comparison(command.out / PICTURE, title, {result.label: result.records for result in best})
    winner = min(best, key=lambda result: result.summary.val_loss)
    if winner.summary.sample:
        console.print(f"\n{winner.label} writes (after ▮):\n{printable(winner.summary.sample)}\n", soft_wrap=True)
    console.print(f"results in {command.out}: {PICTURE}, {TABLE}, and a directory for each run", soft_wrap=True)
