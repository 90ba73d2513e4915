"""Param groups in the layouts of other packages."""

from typing import Any

import torch
from torch import nn


def of_microsoft(algorithm: str, **options: Any) -> dict[str, Any]:
    common = {"lr": 0.03, "weight_decay": 0.2, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-8, "step": 0}
    shaped = {"mu": 0.9, "flatten": False, "adjust_lr": "spectral_norm"}
    own: dict[str, dict[str, Any]] = {
        "dion": {"mu": 0.9, "rank_fraction": 0.3, "rank_multiple_of": 2, "oversample": 1.25},
        "muon": {**shaped, "nesterov": False},
        "normuon": {**shaped, "nesterov": False, "muon_beta2": 0.8, "cautious_wd": False},
        "dion2": {**shaped, "ef_decay": 0.8, "fraction": 0.3},
        "nordion2": {**shaped, "muon_beta2": 0.8, "fraction": 0.3, "selection_scope": "local", "capacity_factor": None},
        "adamw": {**shaped, "nesterov": False},
        "lion": {**shaped, "nesterov": False},
    }
    del own["dion2"]["mu"]
    return {"algorithm": algorithm, **common, **own[algorithm], **options}


KELLER = {"lr": 0.03, "weight_decay": 0.2}
MOONLIGHT = {
    "lr": 0.03,
    "wd": 0.2,
    "momentum": 0.9,
    "nesterov": True,
    "ns_steps": 5,
    "adamw_betas": (0.8, 0.9),
    "adamw_eps": 1e-16,
}


def torch_muon(**changes: Any) -> dict[str, Any]:
    param = nn.Parameter(torch.zeros(6, 4))
    return {**torch.optim.Muon([param]).state_dict()["param_groups"][0], **changes}


def torch_adamw(**changes: Any) -> dict[str, Any]:
    param = nn.Parameter(torch.zeros(6, 4))
    return {**torch.optim.AdamW([param]).state_dict()["param_groups"][0], **changes}


def without(group: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k != key}
