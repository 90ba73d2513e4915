"""The help that fits a screen: the options that people change, and examples. `--help-all` lists the rest."""

from dataclasses import dataclass
from textwrap import wrap
from typing import get_args

from orthon.train.settings.base import Settings
from orthon.train.settings.data import SourceName
from orthon.train.settings.model import SizeName
from orthon.train.settings.optimizer import OptimizerName
from orthon.train.settings.run import CompareConfig, TrainConfig

WIDTH = 100  # characters in a line

_DATA = (
    ("--data.source NAME", f"Text: {', '.join(get_args(SourceName))}."),
    ("--data.paths PATH ...", "Files or folders of text, or of token shards."),
)
_SIZE = ("--model.size NAME", f"LLaMA: {', '.join(get_args(SizeName))}.")
_STEPS = ("--steps N", "Optimizer steps.")
_BATCH = ("--batch-size N", "Sequences in one step.")
_CONFIG = ("--config FILE", "YAML file with settings. Options override it.")


@dataclass(frozen=True)
class Help:
    """The short help of a command.

    Attributes:
        does: what the command does.
        kind: its settings, for their defaults.
        options: each with its value, and what it is for.
        examples: command lines.
        after: said at the end.
    """

    does: str
    kind: type[Settings]
    options: tuple[tuple[str, str], ...]
    examples: tuple[str, ...]
    after: str

    def text(self, command: str) -> str:
        """Return the whole help, of at most 100 characters in a line."""
        lines = [f"Usage: orthon {command} [OPTIONS]", "", self.does, "", "Options that are changed most:"]
        for option, words in self.options:
            default = _default(self.kind, option.split()[0])
            said = f"  {option:<28}{words}{f' Default: {default}.' if default else ''}"
            lines += wrap(said, WIDTH, subsequent_indent=30 * " ", break_on_hyphens=False)
        lines += ["", "Examples:", *(f"  orthon {command} {example}" for example in self.examples)]
        lines += ["", self.after, f"All options: orthon {command} --help-all"]
        return "\n".join(lines)


SHORT = {
    "train": Help(
        "Train once: loss curve, checkpoints, a sample of what the model writes.",
        TrainConfig,
        (
            _SIZE,
            *_DATA,
            _STEPS,
            _BATCH,
            ("--optimizer.name NAME", f"{', '.join(get_args(OptimizerName))}."),
            ("--optimizer.lr X", "Learning rate of the hidden matrices. Default: by optimizer."),
            ("--optimizer.rank-fraction X", "Rank of Dion's update: 1/16, for example. Default: 1/4."),
            ("--out DIR", "Results, in a new folder. Default: runs/OPTIMIZER-MODEL."),
            ("--resume DIR", "Go on with a run, after a stop or with more --steps."),
        ),
        (
            "--model.size 4M --steps 1000 --optimizer.rank-fraction 1/8",
            "--data.source text --data.paths my_texts/ --optimizer.name muon",
            "--resume runs/dion-4M --steps 2000",
        ),
        "Settings may be in a file too: --config FILE.yaml",
    ),
    "compare": Help(
        "Train with several optimizers on the same text: a table and a picture. Called again, it goes on.",
        CompareConfig,
        (
            ("--optimizers NAME ...", f"Of {', '.join(get_args(OptimizerName))}."),
            ("--sweep X ...", "Factors on each default learning rate; the best run counts."),
            _SIZE,
            *_DATA,
            _STEPS,
            _BATCH,
            ("--seed N", "Seed of the weights, the text's order and the optimizers."),
            ("--out DIR", "Results, with a folder for each run. Default: runs/compare."),
            _CONFIG,
        ),
        (
            "--optimizers dion:1/16 dion muon adamw",
            "--sweep 0.5 1 2 --steps 1000",
            "--data.source text --data.paths my_texts/ --out runs/my_texts",
        ),
        "dion:1/16 also sets the rank fraction, dion2:1/2 the fraction of rows.",
    ),
}


def _default(kind: type[Settings], flag: str) -> str:
    """Return the default of an option as it would be typed, or nothing if it has none."""
    value: object = kind()
    for name in flag.removeprefix("--").replace("-", "_").split("."):
        value = getattr(value, name, None)
    if isinstance(value, tuple):
        return " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return "" if value is None else str(value)
