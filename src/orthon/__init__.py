"""Orthon: optimizers with orthonormal updates for PyTorch, on any layout."""

from importlib.metadata import version

from orthon.convert import Conversion, convert_state, convert_states
from orthon.explain import Explanation, explain
from orthon.family import Dion, Dion2, Dion3, Muon, NorDion2, NorMuon
from orthon.matrix_view import MatrixView
from orthon.optimizer import MixedOptimizer
from orthon.qk_clip import qk_clip_
from orthon.routing import param_groups

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
