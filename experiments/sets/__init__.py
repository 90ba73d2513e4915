"""The named sets, each a table in its own file."""

from experiments.entries import Experiment
from experiments.sets import ablation, batch, default, family, momentum, size, transfer

SETS: dict[str, Experiment] = {
    each.SET.name: each.SET for each in (default, batch, size, ablation, transfer, momentum, family)
}
