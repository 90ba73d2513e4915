"""`orthon train`: one run."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from orthon.train.checkpoint import read_checkpoint, refuse_differences
from orthon.train.config import TrainConfig
from orthon.train.config_file import as_plain, flatten, read_config
from orthon.train.corpus import load_corpus
from orthon.train.errors import UserError
from orthon.train.optimizers import settle
from orthon.train.ranks import join_ranks
from orthon.train.run import Run
from orthon.train.run_directory import CONFIG, PLOT, SAMPLE, refuse_existing
from orthon.train.tokens import Corpus


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a LLaMA."""

    out: Path | None = None
    """Directory for the results, new or empty; if not given, runs/OPTIMIZER-SIZE."""
    config: Path | None = None
    """YAML file with settings; flags override it."""
    resume: Path | None = None
    """Directory of a run to go on with, by its own settings; a few may change, such as --steps."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def run_train(command: TrainCommand) -> None:
    """Train, and say where the results are.

    Raises:
        UserError: The settings cannot be used; nothing has been written.
        TrainingError: The loss or a gradient is not finite.
    """
    console = Console(highlight=False)
    ranks = join_ranks(command.settings)
    run = Run(*ranks.together(lambda: _prepare(command)), ranks)

    console.print(run.describe(), soft_wrap=True, markup=False)
    summary = run.train(console)
    if summary is None:
        console.print(
            f"stopped after step {run.training.step} of {run.config.steps}; "
            f"go on with: orthon train --resume {run.directory}",
            soft_wrap=True,
            markup=False,
        )
        return
    if summary.sample:
        console.print(f"\n{summary.sample}\n", soft_wrap=True, markup=False)
    console.print(
        f"held-out loss {summary.val_loss:.4f} nats per token after {summary.steps} steps\n"
        f"{summary.seconds:.1f} s of training, {summary.optimizer_share:.1%} of them in the optimizer, "
        f"which keeps {summary.state_bytes / 1e6:.2f} MB of state\n"
        f"results in {run.directory}: {PLOT}, {SAMPLE}, metrics.jsonl, tensorboard, checkpoints",
        soft_wrap=True,
        markup=False,
    )


def _prepare(command: TrainCommand) -> tuple[TrainConfig, Path, Corpus, dict[str, Any] | None]:
    """Settings, directory, text and checkpoint of the run."""
    config = command.settings
    if command.resume is None:
        directory = command.out or Path("runs") / f"{config.optimizer.name}-{config.model.size}"
        refuse_existing(directory)
        # Written down in full, so that another default in a later version does not change this run.
        config = replace(config, optimizer=settle(config.optimizer))
        return config, directory, load_corpus(config.data), None
    directory = command.resume
    if command.out is not None or command.config is not None:
        raise UserError("--resume goes on in its own directory with its own settings: no --out or --config")
    before = flatten(as_plain(read_config(directory / CONFIG, TrainConfig)))
    refuse_differences(before, config, f"the run in {directory}")
    checkpoint = read_checkpoint(directory)
    done = checkpoint["step"]
    if config.steps < done or (config.steps == done and before["steps"] != done):
        raise UserError(f"steps must be above the {done} that are done in {directory} but is {config.steps}")
    return config, directory, load_corpus(config.data), checkpoint
