"""Orthon: optimizers with orthonormal updates for PyTorch, on any layout."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from orthon import early_interrupt as _early_interrupt  # noqa: F401  # before torch is imported
from orthon.algorithms import Rule, register_rule
from orthon.explain import Explanation, explain
from orthon.machines import Machine
from orthon.model import param_groups, qk_clip_
from orthon.optimizers import (
    Dion,
    Dion2,
    Dion3,
    MixedOptimizer,
    Muon,
    NorDion2,
    NorMuon,
    consolidate,
    create,
    rules,
    skipped_steps,
)
from orthon.plan import Plan, plan
from orthon.sharding.matrix_view import MatrixView

if TYPE_CHECKING:
    from orthon import integrations
    from orthon.saving.convert import Conversion, convert_state, convert_states

__all__ = [
    "Conversion",
    "Dion",
    "Dion2",
    "Dion3",
    "Explanation",
    "Machine",
    "MatrixView",
    "MixedOptimizer",
    "Muon",
    "NorDion2",
    "NorMuon",
    "Plan",
    "Rule",
    "consolidate",
    "convert_state",
    "convert_states",
    "create",
    "explain",
    "integrations",
    "param_groups",
    "plan",
    "qk_clip_",
    "register_rule",
    "rules",
    "skipped_steps",
]

__version__ = version("orthon")

# Few programs convert states of other packages, or are other people's trainers. What they need is imported when it is
# first asked for.
_FROM_CONVERT = ("Conversion", "convert_state", "convert_states")


def __getattr__(name: str) -> object:
    if name in _FROM_CONVERT:
        return getattr(import_module("orthon.saving.convert"), name)
    if name == "integrations":
        return import_module("orthon.integrations")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_CONVERT, "integrations"})
