"""The optimizers that people make: one class for each rule, and the mixed one beneath them."""

from orthon.optimizers.by_name import create, rules
from orthon.optimizers.common import CommonOptions
from orthon.optimizers.dion import Dion
from orthon.optimizers.dion2 import Dion2
from orthon.optimizers.dion3 import Dion3, NorDion2
from orthon.optimizers.mixed import MixedOptimizer
from orthon.optimizers.muon import Muon
from orthon.optimizers.normuon import NorMuon
from orthon.optimizers.wrapped import consolidate, skipped_steps

__all__ = [
    "CommonOptions",
    "Dion",
    "Dion2",
    "Dion3",
    "MixedOptimizer",
    "Muon",
    "NorDion2",
    "NorMuon",
    "consolidate",
    "create",
    "rules",
    "skipped_steps",
]
