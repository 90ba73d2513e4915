"""Which phase of a step an operation belongs to: a readable name for the code that asks for it."""

import sys
from types import CodeType, FrameType

PHASES = (
    "gradients",
    "momentum",
    "products",
    "orthonormalization",
    "polar factor",
    "row selection",
    "row moments",
    "tail",
    "weights",
    "communication",
)

# What a rule that is not Orthon's does by itself.
OTHER = "other"

# The phase of a module, or of one of its functions. The innermost function that has one decides. A name stands for all
# that begins with it; the longest one counts. None leaves it to the caller: that is code which many phases use.
_PHASES: dict[str, str | None] = {
    "orthon.algorithms.adamw": "weights",
    "orthon.algorithms.batch": None,
    "orthon.algorithms.dion": "products",
    "orthon.algorithms.dion2": "row selection",
    "orthon.algorithms.dion3": "row moments",
    "orthon.algorithms.gate": None,
    "orthon.algorithms.kept": None,
    "orthon.algorithms.lion": "momentum",
    "orthon.algorithms.low_rank_momentum": "products",  # M Q and Mᵀ P
    "orthon.algorithms.low_rank_momentum:LowRankMomentum._send_back": "weights",
    "orthon.algorithms.low_rank_momentum:LowRankMomentum._with_tail": "tail",
    "orthon.algorithms.low_rank_momentum:LowRankMomentum.descend": "weights",
    "orthon.algorithms.low_rank_momentum:LowRankMomentum.fade": "momentum",  # error feedback
    "orthon.algorithms.momentum": "momentum",
    "orthon.algorithms.muon": "polar factor",
    "orthon.algorithms.normuon": "row moments",
    "orthon.algorithms.owned_momentum": "communication",
    "orthon.algorithms.row_moments": "row moments",
    "orthon.algorithms.rows": "row selection",
    "orthon.algorithms.rows:Rows.polar": "polar factor",
    "orthon.algorithms.rows:Rows.times": "row moments",
    "orthon.algorithms.rows:Rows.squares": "row moments",
    "orthon.algorithms.rows:Rows.chosen": "row moments",
    "orthon.algorithms.rows:Rows.wide": "row moments",
    "orthon.algorithms.rows:Rows.descend": "weights",
    "orthon.algorithms.rows:Rows._mapped": None,
    "orthon.algorithms.rows:Rows._spread": None,
    "orthon.algorithms.rows:_descend_rows_": "weights",
    "orthon.algorithms.rows:_index": None,
    "orthon.algorithms.selected_rows": "row selection",
    "orthon.algorithms.tail": "tail",
    "orthon.algorithms.weights": "weights",
    "orthon.algorithms.whole_matrix": "polar factor",
    "orthon.linalg": None,
    "orthon.linalg.columns": "orthonormalization",
    "orthon.linalg.factor_gram": "orthonormalization",
    "orthon.linalg.kernels.products:add_each": "momentum",
    "orthon.linalg.kernels.products:mix_each": "momentum",
    "orthon.linalg.orthonormalize": "orthonormalization",
    "orthon.linalg.polar": "polar factor",
    "orthon.linalg.polar_columns": "orthonormalization",
    "orthon.model": "gradients",
    "orthon.optimizers": "gradients",
    "orthon.plan": None,
    "orthon.sharding": "communication",
    "orthon.sharding.matrices": "gradients",
    "orthon.sharding.matrix_view": "gradients",
    "orthon.step": "gradients",
}

# Code that is neither Orthon's nor a rule's from outside.
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch"}

_Found = tuple[str | None, bool]  # the phase, if it decides one, and whether it is code from outside


def phase() -> str:
    """Return the phase of the operation that is asked for by the functions that are being called now."""
    frame: FrameType | None = sys._getframe(1)
    outside = False
    while frame is not None:
        code = frame.f_code
        found = _known.get(code)
        if found is None:
            found = _known[code] = _of_code(frame.f_globals.get("__name__", ""), code.co_qualname)
        name, is_outside = found
        if name is not None:
            return OTHER if outside and name == "gradients" else name
        outside |= is_outside
        frame = frame.f_back
    return OTHER


_known: dict[CodeType, _Found] = {}


def _of_code(module: str, function: str) -> _Found:
    root = module.partition(".")[0]
    if root != "orthon":
        return None, root not in _LIBRARIES
    name = f"{module}:{function}"
    while name not in _PHASES:
        end = max(name.rfind("."), name.rfind(":"))
        if end < 0:
            return OTHER, False
        name = name[:end]
    return _PHASES[name], False
