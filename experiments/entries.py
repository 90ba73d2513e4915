"""What a set is made of: optimizers, settings that are the same for all of them, and a table of both."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from experiments import sweep
from experiments.cell import Cell
from experiments.results import Found
from orthon.train.settings.key_values import Scalar
from orthon.train.settings.model import SizeName
from orthon.train.settings.optimizer import OptimizerName
from orthon.train.settings.run import DeviceName, PrecisionName


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An optimizer with its options.

    Attributes:
        name: in tables and pictures.
        optimizer: its name in `orthon train`.
        lr: where its sweeps begin.
        fraction: the rank of Dion, or the share of the rows of Dion2 and Dion3.
        options: more arguments of the optimizer.
    """

    name: str
    optimizer: OptimizerName
    lr: float
    fraction: float | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all optimizers that are compared with each other.

    Attributes:
        name: in tables and pictures.
        batch: sequences in one step.
        steps: of a run.
        seeds: the first one serves the sweep of learning rates, the others follow at the best one.
        size: of the model, by its name in `orthon train`.
        model: single numbers of the model in place of those of `size`.
        momentum: of the run.
        sweeps: whether learning rates are swept; else each optimizer has that of its contender.
        precision: of the products in the model.
    """

    name: str
    batch: int = 8
    steps: int = 300
    seeds: tuple[int, ...] = (0, 1, 2)
    size: SizeName = "1M"
    model: Mapping[str, int] = field(default_factory=dict)
    momentum: float = 0.8
    sweeps: bool = True
    precision: PrecisionName = "float32"


@dataclass(frozen=True)
class Entry:
    """One optimizer in one setting: a handful of runs."""

    contender: Contender
    setting: Setting

    def cell(self, k: int, seed: int) -> Cell:
        """The run with learning rate number k of the sweep and a seed."""
        contender, setting = self.contender, self.setting
        return Cell(
            optimizer=contender.optimizer,
            lr=sweep.lr_at(contender.lr, k),
            seed=seed,
            steps=setting.steps,
            batch=setting.batch,
            size=setting.size,
            momentum=setting.momentum,
            fraction=contender.fraction,
            options=contender.options,
            model=setting.model,
            precision=setting.precision,
        )

    def swept(self, found: Found) -> dict[int, float]:
        """The held-out losses at the end of the runs of the sweep, by number of the learning rate."""
        losses = {}
        for ks in sweep.outwards() if self.setting.sweeps else ((0,),):
            for k in ks:
                line = found.get(self.cell(k, self.setting.seeds[0]).key)
                if line is None:
                    break
                losses[k] = line.loss
        return losses

    def best(self, found: Found) -> int | None:
        """The number of the best learning rate, or None while the sweep has not ended."""
        losses = self.swept(found)
        if not self.setting.sweeps:
            return 0
        return None if sweep.further(losses) else sweep.best_of(losses)

    def missing(self, found: Found) -> list[Cell]:
        """The runs that can be told to be missing, given what is known."""
        best = self.best(found)
        if best is None:
            cells = [self.cell(k, self.setting.seeds[0]) for k in sweep.further(self.swept(found))]
        else:
            cells = [self.cell(best, seed) for seed in self.setting.seeds]
        return [cell for cell in cells if cell.key not in found]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A set: a question, and the table of runs that answers it.

    Attributes:
        name: on the command line and of the files.
        question: in a sentence.
        entries: the table.
        baseline: the contender from which differences are taken.
        pairs: names of two contenders each, whose difference is shown as well.
        shown: what the table of all settings shows: "difference" to the baseline, or "lr", the best learning rate.
        target: the contender whose final loss the others are to reach; None: no steps are counted.
        published: what others have found, to compare.
        device: on which the set is meant to run.
    """

    name: str
    question: str
    entries: tuple[Entry, ...]
    baseline: str = "Muon"
    pairs: tuple[tuple[str, str], ...] = ()
    shown: Literal["difference", "lr"] = "difference"
    target: str | None = None
    published: str = ""
    device: DeviceName = "cpu"

    def missing(self, found: Found) -> Iterator[Cell]:
        """The runs that can be told to be missing, each once, in the order of the table."""
        cells = {cell.key: cell for entry in self.entries for cell in entry.missing(found)}
        yield from cells.values()

    @property
    def settings(self) -> list[Setting]:
        """The settings, in the order of the table."""
        return list({entry.setting.name: entry.setting for entry in self.entries}.values())

    def at(self, setting: Setting) -> list[Entry]:
        """The entries in a setting."""
        return [entry for entry in self.entries if entry.setting.name == setting.name]


def crossed(contenders: Iterable[Contender], settings: Iterable[Setting]) -> tuple[Entry, ...]:
    """Return each contender in each setting, setting by setting."""
    return tuple(Entry(contender, setting) for setting, contender in product(settings, tuple(contenders)))
