"""The packages whose states can be converted; the formats of torch.optim, Keller Jordan's Muon and Moonlight."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from orthon.linalg.polynomials import NEWTON_SCHULZ
from orthon.saving.convert.formats import (
    NO_EFFECT,
    NORM_EPS,
    Format,
    Key,
    NewGroup,
    Source,
    States,
    refused,
    same,
    whole,
)
from orthon.saving.convert.microsoft import MICROSOFT_DION
from orthon.saving.shown import listed
from orthon.sharding.matrix_view import MatrixView

_IN_BFLOAT16 = "their Newton-Schulz iteration runs in bfloat16, orthon's in polar_dtype"
_COUPLED = (
    "means weight decay that is added to the gradient (Adam's); orthon's is decoupled: set weight_decay=0 in the "
    "group, or train it with decoupled_weight_decay=True"
)

# torch.optim

_TORCH_ADAMW = Format(
    algorithm="adamw",
    entries={"step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "max_exp_avg_sq": "max_exp_avg_sq"},
    keys={
        **{name: same(name) for name in ("lr", "betas", "eps", "weight_decay")},
        "amsgrad": same("amsgrad"),  # which RAdam and others with the same entries lack
        **{name: Key(name) for name in ("maximize", "foreach", "fused")},
        "capturable": NO_EFFECT,
        "differentiable": NO_EFFECT,
        "decoupled_weight_decay": Key(allowed=lambda decoupled: decoupled is True, reason=_COUPLED),
    },
)


def _split_torch_adamw(group: Mapping[str, Any], states: States) -> list[NewGroup]:
    """Return one group. Without weight decay it does not matter whether that is decoupled."""
    notes: tuple[str, ...] = ()
    if group.get("weight_decay") == 0:
        group = {**group, "decoupled_weight_decay": True}
    elif "decoupled_weight_decay" not in group:  # an earlier version of torch, where Adam's looks the same
        notes = ("whether weight decay is AdamW's or Adam's is not in the file: it is taken to be AdamW's, decoupled",)
    return [NewGroup("adamw", group, dict(enumerate(states)), notes=notes)]


_TORCH_MUON = Format(
    algorithm="muon",
    entries={"momentum_buffer": "momentum"},
    keys={
        **{name: same(name) for name in ("lr", "weight_decay", "momentum", "nesterov")},
        "ns_steps": same("polar_steps"),
        "ns_coefficients": Key(
            allowed=lambda coefficients: tuple(coefficients) == NEWTON_SCHULZ,
            reason=f"is a polynomial that orthon does not have; with {NEWTON_SCHULZ} in the group, training goes on "
            "with that approximation of the polar factor",
        ),
        "eps": NORM_EPS,
        "adjust_lr_fn": Key(
            "adjust_lr_fn",
            {None: "original", "original": "original", "match_rms_adamw": "match_rms_adamw"},
            reason="is no shape factor of torch's (allowed: None, 'original', 'match_rms_adamw')",
            required=True,
        ),
    },
    options={"ema": True, "polar": "newton_schulz"},
    notes=(_IN_BFLOAT16,),
)

# github.com/KellerJordan/Muon

_EARLIER = refused("belongs to an earlier version of the package, whose momentum is a sum")
_KELLER_MUON = Format(
    algorithm="muon",
    entries={"momentum_buffer": "momentum"},
    keys={
        **{name: same(name) for name in ("lr", "weight_decay", "momentum")},
        "use_muon": NO_EFFECT,
        "nesterov": _EARLIER,
        "ns_steps": _EARLIER,
    },
    options={"ema": True, "nesterov": True, "polar": "newton_schulz", "polar_steps": 5, "adjust_lr_fn": "original"},
    notes=(
        _IN_BFLOAT16,
        "MuonWithAuxAdam on several processes sorts the parameters of its Muon groups by size, largest first; they are "
        "in that order in the file",
    ),
)
_KELLER_ADAM = Format(
    algorithm="adamw",
    entries={"step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    keys={**{name: same(name) for name in ("lr", "betas", "eps", "weight_decay")}, "use_muon": NO_EFFECT},
)


def _split_keller(group: Mapping[str, Any], states: States) -> list[NewGroup]:
    """Return one group of Adam, or one or two of Muon: convolutions become a group of their own.

    The updates of convolutions are those of the flattened weights, but scaled by the height and width of the kernel.
    """
    numbered = dict(enumerate(states))
    if not group.get("use_muon", True):
        return [NewGroup("adam", group, numbered)]
    buffers = {i: state.get("momentum_buffer") for i, state in numbered.items()}
    shapes = {i: tuple(buffer.shape) for i, buffer in buffers.items() if isinstance(buffer, Tensor)}
    kernels = {i: shape[-2:] for i, shape in shapes.items() if len(shape) == 4}
    if high := [kernel for kernel in kernels.values() if kernel[0] > kernel[1]]:
        raise ValueError(
            f"it has a convolution whose kernel is higher than wide, {high[0]}; its update is scaled by the root of "
            "their ratio, which is no shape factor of orthon; take its state out of it, so that it starts anew"
        )
    view = {"view": MatrixView().as_dict()} if any(len(shape) == 3 for shape in shapes.values()) else {}
    flattened = {"view": MatrixView(kind="convolution").as_dict(), "adjust_lr_fn": "none"}
    groups = [
        NewGroup("muon", group, {i: state for i, state in numbered.items() if i not in kernels}, view),
        NewGroup("muon", group, {i: numbered[i] for i in kernels}, flattened),
    ]
    return [new for new in groups if new.states]


# github.com/MoonshotAI/Moonlight, examples/toy_train.py

_MOONLIGHT_KEYS = {
    "lr": same("lr"),
    "wd": same("weight_decay"),
    **dict.fromkeys(("momentum", "nesterov", "ns_steps", "adamw_betas", "adamw_eps"), NO_EFFECT),
}
_MOONLIGHT_MUON = Format(
    algorithm="muon",
    entries={"momentum_buffer": "momentum"},
    keys={
        **_MOONLIGHT_KEYS,
        "momentum": same("momentum"),
        "nesterov": same("nesterov"),
        "ns_steps": same("polar_steps"),
    },
    options={"ema": False, "polar": "newton_schulz", "adjust_lr_fn": "match_rms_adamw"},
    notes=(_IN_BFLOAT16,),
)
_MOONLIGHT_ADAMW = Format(
    algorithm="adamw",
    entries={"step": "step", "moment1": "exp_avg", "moment2": "exp_avg_sq"},
    keys={**_MOONLIGHT_KEYS, "adamw_betas": same("betas"), "adamw_eps": same("eps")},
    notes=(
        "their AdamW adds adamw_eps before the bias correction of the second moment, orthon's after it: the same but "
        "for gradients near adamw_eps in the first steps",
    ),
)


def _split_moonlight(group: Mapping[str, Any], states: States) -> list[NewGroup]:
    """Return a group of Muon and one of AdamW. The state of each parameter tells where it belongs."""
    kinds: dict[bool, dict[int, Mapping[str, Any]]] = {True: {}, False: {}}
    for position, state in enumerate(states):
        if not isinstance(state.get("use_muon"), bool):
            raise ValueError(
                f"the state of parameter {position} should have 'use_muon' True or False, but has {listed(state)}"
            )
        kinds[state["use_muon"]][position] = {key: value for key, value in state.items() if key != "use_muon"}
    names = {True: "muon", False: "adamw"}
    return [NewGroup(names[kind], group, of_kind) for kind, of_kind in kinds.items() if of_kind]


SOURCES: Mapping[str, Source] = {
    "torch-adamw": Source({"adamw": _TORCH_ADAMW}, _split_torch_adamw),  # Adam without weight decay as well
    "torch-muon": Source({"muon": _TORCH_MUON}, whole("muon")),
    # Of github.com/KellerJordan/Muon: Muon, MuonWithAuxAdam, and both for a single device.
    "keller-muon": Source({"muon": _KELLER_MUON, "adam": _KELLER_ADAM}, _split_keller),
    # Of github.com/MoonshotAI/Moonlight.
    "moonlight-muon": Source({"muon": _MOONLIGHT_MUON, "adamw": _MOONLIGHT_ADAMW}, _split_moonlight),
    "microsoft-dion": MICROSOFT_DION,
}
