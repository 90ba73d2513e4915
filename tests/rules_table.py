"""The table of rules, options, shapes and gradients that all tests of a rule use.

`OPTIONS` has, for each rule, sets of options for tests against the reference in one process; `ON_RANKS` those for tests
on ranks, where every set is met on every layout.
"""

from typing import Any

from orthon.algorithms.dion import PAPER
from orthon.testing.formulas import MATRICES
from orthon.testing.gradients import KINDS

Options = dict[str, Any]

STEPS = 5
SHAPES: dict[str, tuple[int, int]] = {name: (shape[0], shape[1]) for name, shape in MATRICES.items()}
GRADIENTS = list(KINDS)

EXACT: Options = {"polar": "svd"}  # so that nothing but rounding is between a rule and its formulas
NEWTON_SCHULZ: Options = {"polar": "newton_schulz", "polar_steps": 3}
DECAY: Options = {"weight_decay": 0.5, "lr": 0.05}
CAUTIOUS: Options = {**DECAY, "cautious_weight_decay": True}

TAIL: Options = {
    "tail": 0.7,
    "right_factor": "orthonormalize",
    "residual_momentum": None,
    "nesterov": False,
    "rank_fraction": 0.3,
}

OPTIONS: dict[str, dict[str, Options]] = {
    "dion": {
        "defaults": {},
        "the paper's": PAPER,
        "rank 1": {**PAPER, "rank_fraction": 0.01},
        "full rank": {**PAPER, "rank_fraction": 1.0},
        "orthonormalize": {**PAPER, "right_factor": "orthonormalize"},
        "long side": {**PAPER, "orthonormal_side": "long"},
        "polar": {**PAPER, "right_factor": "polar"},
        "full rank, polar, two power iterations": {
            **PAPER,
            "rank_fraction": 1.0,
            "right_factor": "polar",
            "power_iterations": 2,
        },
        "long side, full rank, orthonormalize": {
            **PAPER,
            "orthonormal_side": "long",
            "rank_fraction": 1.0,
            "right_factor": "orthonormalize",
        },
        "tail": {**PAPER, "tail": 0.7, "right_factor": "orthonormalize"},
        "tail, momentum": {**TAIL, "rank_fraction": 0.5},
        "tail, momentum, nesterov": {**TAIL, "nesterov": True},
        "tail, unit columns, long side": {**TAIL, "right_factor": "normalize", "orthonormal_side": "long"},
        "tail, full rank, cautious": {**TAIL, **CAUTIOUS, "rank_fraction": 1.0, "nesterov": True},
        "tail, cautious, maximize": {**TAIL, **CAUTIOUS, "maximize": True, "nesterov": True},
        "large tail, two power iterations": {**PAPER, "tail": 3.0, "residual_momentum": 0.5, "power_iterations": 2},
        "nesterov without tail": {**TAIL, "tail": 0.0, "nesterov": True, "rank_fraction": 0.5},
        "residual fades": {**PAPER, "residual_momentum": 0.9, "momentum": 0.5},
        "residual is dropped": {**PAPER, "residual_momentum": 0.0},
        "three power iterations": {**PAPER, "power_iterations": 3, "rank_fraction": 0.5},
        "maximize": {**PAPER, "maximize": True},
        "no momentum": {**PAPER, "momentum": 0.0},
        "no decay, original": {**PAPER, "weight_decay": 0.0, "adjust_lr_fn": "original"},
        "much decay, match_rms_adamw": {**PAPER, **DECAY, "adjust_lr_fn": "match_rms_adamw"},
        "unscaled": {**PAPER, "adjust_lr_fn": "none"},
        "cautious decay": {**PAPER, **CAUTIOUS, "lr": 0.1},
    },
    "muon": {
        "defaults": {},
        "not nesterov": {"nesterov": False},
        "ema": {"ema": True},
        "ema, not nesterov": {"ema": True, "nesterov": False, "momentum": 0.5},
        "no momentum": {"momentum": 0.0},
        "maximize": {"maximize": True, "ema": True},
        "no decay, original": {"weight_decay": 0.0, "adjust_lr_fn": "original"},
        "much decay, match_rms_adamw": {**DECAY, "adjust_lr_fn": "match_rms_adamw"},
        "cautious decay, unscaled": {**CAUTIOUS, "adjust_lr_fn": "none"},
        "cautious decay, maximize": {**CAUTIOUS, "maximize": True},
    },
    "normuon": {
        "defaults": {},
        "ema, not nesterov": {"ema": True, "nesterov": False},
        "no memory of rows": {"beta2": 0.0, "adjust_lr_fn": "original"},
        "long memory of rows, large eps": {"beta2": 0.999, "eps": 1e-3, "adjust_lr_fn": "match_rms_adamw"},
        "maximize": {"maximize": True, "momentum": 0.0},
        "cautious decay": CAUTIOUS,
    },
    "dion2": {
        "defaults": {},
        "all rows": {"fraction": 1.0},
        "one row": {"fraction": 1e-3},
        "always rows": {"selection_side": "rows", "fraction": 0.4},
        "scaled by the fraction": {"fraction": 0.3, "lr_scale_by_fraction": True, "adjust_lr_fn": "original"},
        "no momentum": {"momentum": 0.0, "fraction": 0.5},
        "maximize": {"maximize": True, "momentum": 0.5},
        "much decay, match_rms_adamw": {**DECAY, "adjust_lr_fn": "match_rms_adamw"},
        "cautious decay, unscaled": {**CAUTIOUS, "adjust_lr_fn": "none", "fraction": 0.6},
    },
    "dion3": {
        "defaults": {},
        "shorter side": {"selection_side": "short"},
        "all rows": {"fraction": 1.0},
        "one row": {"fraction": 1e-3, "adjust_lr_fn": "original"},
        "scaled by the fraction": {"fraction": 0.3, "lr_scale_by_fraction": True},
        "no memory of rows": {"beta2": 0.0, "fraction": 0.5},
        "long memory of rows, large eps": {"beta2": 0.999, "eps": 1e-3, "adjust_lr_fn": "match_rms_adamw"},
        "maximize": {"maximize": True, "momentum": 0.0},
        "cautious decay": {**CAUTIOUS, "fraction": 0.6},
    },
    "adamw": {
        "defaults": {},
        "amsgrad": {"amsgrad": True},
        "cautious decay": {**CAUTIOUS, "lr": 0.1},
        "cautious decay, maximize": {**CAUTIOUS, "lr": 0.1, "maximize": True},
    },
    "lion": {
        "defaults": {},
        "maximize": {"maximize": True},
        "other betas, much decay": {"betas": (0.5, 0.99), "weight_decay": 0.5, "lr": 0.1},
        "cautious decay": {**CAUTIOUS, "lr": 0.1},
        "cautious decay, maximize": {**CAUTIOUS, "lr": 0.1, "maximize": True},
    },
}

# Whole-matrix rules have their polar factor as options above are: exact.
POLAR_RULES = ["muon", "normuon", "dion2", "dion3"]

# On ranks, by what a set is called there: the rule and its options. Dion takes either route on every layout.
ROUTES = ("owners", "shards")
_OF_DION: dict[str, Options] = {
    "defaults": {},
    "the paper's": PAPER,
    "rank 1": {**PAPER, "rank_fraction": 0.01},
    "three power iterations": {**PAPER, "power_iterations": 3},
    "orthonormalize": {**PAPER, "right_factor": "orthonormalize", "rank_fraction": 0.5},
    "polar": {**PAPER, "right_factor": "polar", "rank_fraction": 0.5},
    "long side": {**PAPER, "orthonormal_side": "long", "rank_fraction": 0.5},
    "full rank": {**PAPER, "rank_fraction": 1.0},
    "long side, orthonormalize, two power iterations": {
        **PAPER,
        "orthonormal_side": "long",
        "right_factor": "orthonormalize",
        "power_iterations": 2,
        "rank_fraction": 0.5,
    },
    "tail, nesterov": {**TAIL, "nesterov": True},
    "tail, momentum, unit columns, long side": {**TAIL, "right_factor": "normalize", "orthonormal_side": "long"},
    "tail, feedback, cautious": {**PAPER, "tail": 0.7, "rank_fraction": 0.5, "residual_momentum": 0.9, **CAUTIOUS},
}
DION_BY_ROUTE: dict[str, dict[str, tuple[str, Options]]] = {
    route: {f"{label}, {route}": ("dion", {**options, "route": route}) for label, options in _OF_DION.items()}
    for route in ROUTES
}
DION_ON_RANKS = {**DION_BY_ROUTE["owners"], **DION_BY_ROUTE["shards"]}
OTHERS_ON_RANKS: dict[str, tuple[str, Options]] = {
    "muon": ("muon", EXACT),
    "muon, owners, no nesterov": ("muon", {**EXACT, "polar_route": "owners", "nesterov": False}),
    "muon, shards": ("muon", {"polar_route": "shards", **NEWTON_SCHULZ}),
    "muon ema, cautious": ("muon", {**EXACT, "ema": True, "cautious_weight_decay": True, "weight_decay": 0.5}),
    "normuon, owners": ("normuon", {**EXACT, "polar_route": "owners"}),
    "normuon, shards": ("normuon", {"polar_route": "shards", **NEWTON_SCHULZ, "maximize": True}),
    "dion2": ("dion2", EXACT),
    "dion2 half, cautious": (
        "dion2",
        {**EXACT, "fraction": 0.5, "cautious_weight_decay": True, "weight_decay": 0.5, "lr_scale_by_fraction": True},
    ),
    "dion2 random": ("dion2", {**EXACT, "selection": "random", "fraction": 0.5}),
    "dion3": ("dion3", {**EXACT, "fraction": 0.5}),
    "dion3 shorter side": ("dion3", {**EXACT, "fraction": 0.5, "selection_side": "short"}),
    "dion3 random": ("dion3", {**EXACT, "selection": "random"}),
}
ON_RANKS = {"dion": ("dion", {}), **DION_ON_RANKS, **OTHERS_ON_RANKS}
FORCED = [rule for rule, (_, options) in ON_RANKS.items() if {"route", "polar_route"} & options.keys()]
