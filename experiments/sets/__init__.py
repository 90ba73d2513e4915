"""The named sets, each a table in its own file."""

from experiments.entries import Experiment
from experiments.sets import ablation, batch, batch_120m, default, family, momentum, size, transfer

SETS: dict[str, Experiment] = {
    each.SET.name: each.SET for each in (default, batch, batch_120m, size, ablation, transfer, momentum, family)
}
