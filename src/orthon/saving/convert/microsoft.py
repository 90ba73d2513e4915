"""The format of github.com/microsoft/dion: Dion, Muon, NorMuon, Dion2, NorDion2, and their AdamW and Lion."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from orthon.algorithms.dion import PAPER
from orthon.saving.convert.formats import NO_EFFECT, NORM_EPS, Format, Key, NewGroup, Source, States, same
from orthon.saving.shown import shown
from orthon.sharding.matrix_view import MatrixView

_EVERYWHERE = {
    "lr": same("lr"),
    "weight_decay": same("weight_decay"),
    **dict.fromkeys(("algorithm", "step", "betas", "epsilon"), NO_EFFECT),
}
# Options of the matrix algorithms. Their optimizer gives them to all of its groups, those of AdamW and Lion included.
_OF_MATRICES = {
    **dict.fromkeys(("mu", "muon_beta2", "nesterov", "flatten", "adjust_lr", "num_heads", "split_sizes"), NO_EFFECT),
    **dict.fromkeys(("fraction", "ef_decay", "selection_scope", "capacity_factor", "capped_slack"), NO_EFFECT),
    **dict.fromkeys(("rank_fraction", "rank_multiple_of", "oversample"), NO_EFFECT),
}
_CAUTIOUS = Key("cautious_weight_decay")
_WHOLE_MATRICES = {
    **_EVERYWHERE,
    "epsilon": NORM_EPS,
    "flatten": NO_EFFECT,  # except on the view, see `_view`
    "adjust_lr": Key(
        "adjust_lr_fn",
        {"spectral_norm": "spectral_unclamped", "rms_norm": "match_rms_adamw", None: "none"},
        reason="is no shape factor of orthon (allowed: 'spectral_norm', 'rms_norm', None)",
        required=True,
    ),
    # For groups in which `_view` has not turned them into a view.
    "num_heads": Key(allowed=lambda heads: heads in (None, 1), reason="is known for Muon, NorMuon and NorDion2 alone"),
    "split_sizes": Key(allowed=lambda sizes: sizes is None, reason="is known for Muon and NorMuon alone"),
}
_SELECTION = {
    "fraction": same("fraction"),
    "selection_scope": Key(
        "selection",
        {"global": "global", "local": "local"},
        reason="leaves some of the largest rows for later steps, which orthon never does (allowed: 'global', 'local')",
    ),
    # They belong to the scope that is refused.
    "capacity_factor": NO_EFFECT,
    "capped_slack": NO_EFFECT,
}
_POLAR = {"polar": "polar_express", "polar_steps": 5}
_POLAR_NOTE = (
    "their polar factor comes from five quintic polynomials in bfloat16, which are not in the file; orthon's comes "
    "from the Polar Express, in polar_dtype"
)
_ROWS_NOTE = (
    "on several processes theirs may choose rows of tall matrices; selection_side is taken to be 'short', as on one"
)
_SHARDS_NOTE = (
    "on several processes theirs may bring the rows of each shard to one size, and orthon those of the whole matrix"
)
_SPLIT_NOTE = (
    "in earlier versions of theirs, second moments are of blocks that 'split_sizes' has scaled; the difference fades "
    "with muon_beta2"
)
_SQUARE_NOTE = (
    "the side of a square matrix's Q is not in the file: it is taken to be the columns, as on one process; FSDP may "
    "have chosen the rows, and then it takes some steps until Q fits again"
)


_FORMATS = {
    "dion": Format(
        algorithm="dion",
        entries={"momentum": "momentum", "Q": "Q"},
        keys={
            **_EVERYWHERE,
            "epsilon": NORM_EPS,
            "mu": same("momentum"),
            "rank_fraction": same("rank_fraction"),
            "rank_multiple_of": same("rank_multiple_of"),
            "oversample": NO_EFFECT,
        },
        options={**PAPER, "power_iterations": 1, "adjust_lr_fn": "spectral_unclamped"},
        notes=("the number of power iterations is not in the file: one, their default",),
    ),
    "muon": Format(
        algorithm="muon",
        entries={"momentum": "momentum"},
        keys={
            **_WHOLE_MATRICES,
            "mu": same("momentum"),
            "nesterov": same("nesterov"),
            "cautious_wd": _CAUTIOUS,
        },
        options={"ema": False, **_POLAR},
        notes=(_POLAR_NOTE,),
    ),
    "normuon": Format(
        algorithm="normuon",
        entries={"momentum": "momentum", "variance_neuron": "row_moment"},
        keys={
            **_WHOLE_MATRICES,
            "mu": same("momentum"),
            "nesterov": same("nesterov"),
            "muon_beta2": same("beta2"),
            "cautious_wd": _CAUTIOUS,
        },
        options={"ema": False, "eps": 1e-8, **_POLAR},
        notes=(_POLAR_NOTE, _SHARDS_NOTE),
    ),
    "dion2": Format(
        algorithm="dion2",
        entries={"momentum": "momentum"},
        keys={**_WHOLE_MATRICES, **_SELECTION, "ef_decay": same("momentum")},
        options={"lr_scale_by_fraction": False, "selection_side": "short", **_POLAR},
        notes=(_POLAR_NOTE, _ROWS_NOTE),
    ),
    "nordion2": Format(
        algorithm="dion3",
        entries={"momentum": "momentum", "variance_neuron": "row_moment"},
        keys={
            **_WHOLE_MATRICES,
            **_SELECTION,
            "mu": same("momentum"),
            "muon_beta2": same("beta2"),
        },
        options={"lr_scale_by_fraction": False, "selection_side": "rows", "eps": 1e-8, **_POLAR},
        notes=(_POLAR_NOTE, _SHARDS_NOTE),
    ),
    "adamw": Format(
        algorithm="adamw",
        entries={"step": "step", "momentum": "exp_avg", "variance": "exp_avg_sq"},
        keys={**_EVERYWHERE, **_OF_MATRICES, "betas": same("betas"), "epsilon": Key("eps"), "cautious_wd": _CAUTIOUS},
        options={"eps": 1e-8},  # where it is an argument of the optimizer, and not in the file
    ),
    "lion": Format(
        algorithm="lion",
        entries={"momentum": "exp_avg"},
        keys={**_EVERYWHERE, **_OF_MATRICES, "betas": same("betas"), "cautious_wd": _CAUTIOUS},
    ),
}


def _split(group: Mapping[str, Any], states: States) -> list[NewGroup]:
    """Return one group, or two if Q lies on different sides."""
    algorithm = group.get("algorithm")
    if not isinstance(algorithm, str) or algorithm not in _FORMATS:
        allowed = ", ".join(map(repr, _FORMATS))
        raise ValueError(f"algorithm is {shown(algorithm)}, which orthon does not have (allowed: {allowed})")
    group = dict(group)
    if "beta1" in group and "beta2" in group:
        group["betas"] = (group.pop("beta1"), group.pop("beta2"))
    if algorithm == "adamw":  # which counts the steps of the group
        if "step" not in group:
            raise ValueError("'step', the number of steps, is missing")
        states = [{**state, "step": group["step"]} if state else state for state in states]
    numbered = dict(enumerate(states))
    if algorithm in ("adamw", "lion"):
        return [NewGroup(algorithm, group, numbered)]
    if algorithm != "dion":
        notes = [_SPLIT_NOTE] if algorithm == "normuon" and group.get("split_sizes") is not None else []
        view = _view(algorithm, group, states)
        return [NewGroup(algorithm, group, numbered, {} if view is None else {"view": view.as_dict()}, notes)]
    sides = {position: _side(state) for position, state in numbered.items()}
    if "short" in sides.values() and "square" in sides.values():
        raise ValueError(
            "it has square matrices, and others whose Q shows that sharding chose the side; the side of a square one "
            "is not in the file: take the states of the square matrices out of it, so that they start anew"
        )
    found = [side for side in ("long", "short") if side in sides.values()] or ["long"]
    joined = {position: side if side in found else found[0] for position, side in sides.items()}
    notes = [_SQUARE_NOTE] if "square" in sides.values() else []
    return [
        NewGroup(
            "dion", group, {p: numbered[p] for p in joined if joined[p] == side}, {"orthonormal_side": side}, notes
        )
        for side in found
    ]


def _view(algorithm: str, group: dict[str, Any], states: States) -> MatrixView | None:
    """Return how parameters are read as matrices, None for plain ones. Options that become the view leave the group."""
    heads, sizes = group.get("num_heads"), group.get("split_sizes")
    if algorithm in ("muon", "normuon", "nordion2") and isinstance(heads, int) and heads > 1:
        return MatrixView(blocks=group.pop("num_heads"))
    if algorithm in ("muon", "normuon") and sizes is not None:
        return MatrixView(blocks=tuple(group.pop("split_sizes")))
    dims = {state["momentum"].ndim for state in states if isinstance(state.get("momentum"), Tensor)}
    if max(dims, default=2) <= 2:
        return None
    if not group.get("flatten"):
        return MatrixView()
    if algorithm != "muon" or 2 in dims:
        raise ValueError(
            f"'flatten' is True, and parameters have {', '.join(map(str, sorted(dims)))} dims; orthon has a "
            "counterpart only for 'muon' with 3 dims or more; take their states out of it, so that they start anew"
        )
    return MatrixView(kind="convolution")


def _side(state: Mapping[str, Any]) -> str | None:
    """Return the side of P; "square" if it is not known, None if Q is missing or has a wrong shape."""
    momentum, Q = state.get("momentum"), state.get("Q")
    if not (isinstance(momentum, Tensor) and isinstance(Q, Tensor) and momentum.ndim == Q.ndim == 2):
        return None
    m, n = momentum.shape
    if m == n:
        return "square"
    if len(Q) not in (m, n):
        return None
    return "long" if len(Q) == min(m, n) else "short"


MICROSOFT_DION = Source(_FORMATS, _split)  # of github.com/microsoft/dion
