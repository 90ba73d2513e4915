"""The optimizers that people make: one class for each rule, and the mixed one beneath them."""

from orthon.optimizers.family import Dion, Dion2, Dion3, Muon, NorDion2, NorMuon
from orthon.optimizers.mixed import MixedOptimizer

__all__ = ["Dion", "Dion2", "Dion3", "MixedOptimizer", "Muon", "NorDion2", "NorMuon"]
