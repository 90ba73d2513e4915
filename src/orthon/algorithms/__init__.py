"""The update rules, one file each, and what an author of a rule needs.

A file here that defines `RULE` is found by itself. A rule from outside is made known by `register_rule`.
"""

from importlib import import_module
from pkgutil import iter_modules

from orthon.algorithms.batch import Batch
from orthon.algorithms.kept import Kept
from orthon.algorithms.low_rank import LowRank
from orthon.algorithms.low_rank_momentum import LowRankMomentum
from orthon.algorithms.momentum import MOMENTUM_OPTIONS, added_gradients, updated_momentum
from orthon.algorithms.options import Option, betas, choice, flag, integer, number
from orthon.algorithms.rows import Rows
from orthon.algorithms.rule import RULES, Rule, register_rule
from orthon.algorithms.selected_rows import SelectedRows, selected
from orthon.algorithms.state import Counter, Entry
from orthon.algorithms.whole_matrix import WholeMatrix, polar_factor
from orthon.algorithms.work import Effort, Elementwise, Work
from orthon.sharding import Step

__all__ = [
    "MOMENTUM_OPTIONS",
    "RULES",
    "Batch",
    "Counter",
    "Effort",
    "Elementwise",
    "Entry",
    "Kept",
    "LowRank",
    "LowRankMomentum",
    "Option",
    "Rows",
    "Rule",
    "SelectedRows",
    "Step",
    "WholeMatrix",
    "Work",
    "added_gradients",
    "betas",
    "choice",
    "flag",
    "integer",
    "number",
    "polar_factor",
    "register_rule",
    "selected",
    "updated_momentum",
]

for _info in iter_modules(__path__):
    _rule = getattr(import_module(f"{__name__}.{_info.name}"), "RULE", None)
    if _rule is not None:
        register_rule(_rule)
