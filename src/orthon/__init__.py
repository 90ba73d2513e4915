"""Orthon: optimizers with orthonormal updates for PyTorch, on any layout."""

from importlib.metadata import version

from orthon.explain import Explanation, explain
from orthon.model.qk_clip import qk_clip_
from orthon.model.routing import param_groups
from orthon.optimizers import Dion, Dion2, Dion3, MixedOptimizer, Muon, NorDion2, NorMuon
from orthon.saving.convert import Conversion, convert_state, convert_states
from orthon.sharding.matrix_view import MatrixView

__all__ = [
    "Conversion",
    "Dion",
    "Dion2",
    "Dion3",
    "Explanation",
    "MatrixView",
    "MixedOptimizer",
    "Muon",
    "NorDion2",
    "NorMuon",
    "convert_state",
    "convert_states",
    "explain",
    "param_groups",
    "qk_clip_",
]


__version__ = version("orthon")
