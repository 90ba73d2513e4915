"""The layouts of torch.optim, and of Muon by Keller Jordan and in Moonlight."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from orthon.linalg.polynomials import NEWTON_SCHULZ
from orthon.saving.convert.layouts import NO_EFFECT, NORM_EPS, Key, Layout, Part, Source, States, refused, same, whole
from orthon.saving.convert.microsoft import MICROSOFT_DION
from orthon.sharding.matrix_view import MatrixView

_IN_BFLOAT16 = "their Newton-Schulz iteration runs in bfloat16, orthon's in polar_dtype"
_COUPLED = (
    "means weight decay that is part of the gradient (Adam's); orthon's is decoupled: set weight_decay=0 in the "
    "group, or train it with decoupled_weight_decay=True"
)

# torch.optim

_TORCH_ADAMW = Layout(
    algorithm="adamw",
    entries={"step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "max_exp_avg_sq": "max_exp_avg_sq"},
    keys={
        **{name: same(name) for name in ("lr", "betas", "eps", "weight_decay")},
        **{name: Key(name) for name in ("amsgrad", "maximize", "foreach", "fused")},
        "capturable": NO_EFFECT,
        "differentiable": NO_EFFECT,
        "decoupled_weight_decay": Key(allowed=lambda decoupled: decoupled is True, reason=_COUPLED),
    },
)


def _torch_adamw_parts(group: Mapping[str, Any], states: States) -> list[Part]:
    """Return one part; without decay it does not matter how that would be coupled."""
    notes: tuple[str, ...] = ()
    if group.get("weight_decay") == 0:
        group = {**group, "decoupled_weight_decay": True}
    elif "decoupled_weight_decay" not in group:  # as in earlier versions of torch, where Adam's looks the same
        notes = ("whether weight decay is AdamW's or Adam's is not in the file: AdamW's, decoupled",)
    return [Part("adamw", group, dict(enumerate(states)), notes=notes)]


_TORCH_MUON = Layout(
    algorithm="muon",
    entries={"momentum_buffer": "momentum"},
    keys={
        **{name: same(name) for name in ("lr", "weight_decay", "momentum", "nesterov")},
        "ns_steps": same("polar_steps"),
        "ns_coefficients": Key(
            allowed=lambda coefficients: tuple(coefficients) == NEWTON_SCHULZ,
            reason=f"is another polynomial than those of orthon; with {NEWTON_SCHULZ} in the group it goes on with "
            "that approximation of the polar factor",
        ),
        "eps": NORM_EPS,
        "adjust_lr_fn": Key(
            "lr_scale",
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
_KELLER_MUON = Layout(
    algorithm="muon",
    entries={"momentum_buffer": "momentum"},
    keys={
        **{name: same(name) for name in ("lr", "weight_decay", "momentum")},
        "use_muon": NO_EFFECT,
        "nesterov": _EARLIER,
        "ns_steps": _EARLIER,
    },
    options={"ema": True, "nesterov": True, "polar": "newton_schulz", "polar_steps": 5, "lr_scale": "original"},
    notes=(
        _IN_BFLOAT16,
        "MuonWithAuxAdam on several ranks sorts the parameters of its Muon groups by size, largest first; the file has "
        "them in that order",
    ),
)
_KELLER_ADAM = Layout(
    algorithm="adamw",
    entries={"step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    keys={**{name: same(name) for name in ("lr", "betas", "eps", "weight_decay")}, "use_muon": NO_EFFECT},
)


def _keller_parts(group: Mapping[str, Any], states: States) -> list[Part]:
    """Return one part, by "use_muon" where the optimizer has both kinds of groups, or two: convolutions are apart.

    Their updates are those of the flattened weights, but scaled by the height and width of the kernel.
    """
    numbered = dict(enumerate(states))
    if not group.get("use_muon", True):
        return [Part("adam", group, numbered)]
    buffers = {i: state.get("momentum_buffer") for i, state in numbered.items()}
    shapes = {i: tuple(buffer.shape) for i, buffer in buffers.items() if isinstance(buffer, Tensor)}
    kernels = {i: shape[-2:] for i, shape in shapes.items() if len(shape) == 4}
    if high := [kernel for kernel in kernels.values() if kernel[0] > kernel[1]]:
        raise ValueError(
            f"it has a convolution whose kernel is higher than wide, {high[0]}, and its update scaled by the root of "
            "their ratio, which is no shape factor of orthon; take its state out of it, so that it starts anew"
        )
    view = {"view": MatrixView().as_dict()} if any(len(shape) == 3 for shape in shapes.values()) else {}
    flattened = {"view": MatrixView(kind="convolution").as_dict(), "lr_scale": "none"}
    parts = [
        Part("muon", group, {i: state for i, state in numbered.items() if i not in kernels}, view),
        Part("muon", group, {i: numbered[i] for i in kernels}, flattened),
    ]
    return [part for part in parts if part.states]


# github.com/MoonshotAI/Moonlight, examples/toy_train.py

_MOONLIGHT_KEYS = {
    "lr": same("lr"),
    "wd": same("weight_decay"),
    **dict.fromkeys(("momentum", "nesterov", "ns_steps", "adamw_betas", "adamw_eps"), NO_EFFECT),
}
_MOONLIGHT_MUON = Layout(
    algorithm="muon",
    entries={"momentum_buffer": "momentum"},
    keys={
        **_MOONLIGHT_KEYS,
        "momentum": same("momentum"),
        "nesterov": same("nesterov"),
        "ns_steps": same("polar_steps"),
    },
    options={"ema": False, "polar": "newton_schulz", "lr_scale": "match_rms_adamw"},
    notes=(_IN_BFLOAT16,),
)
_MOONLIGHT_ADAMW = Layout(
    algorithm="adamw",
    entries={"step": "step", "moment1": "exp_avg", "moment2": "exp_avg_sq"},
    keys={**_MOONLIGHT_KEYS, "adamw_betas": same("betas"), "adamw_eps": same("eps")},
    notes=(
        "their AdamW adds adamw_eps before the bias correction of the second moment, orthon's after it: the same but "
        "for gradients near adamw_eps in the first steps",
    ),
)


def _moonlight_parts(group: Mapping[str, Any], states: States) -> list[Part]:
    """Return the parameters with Muon, and the others: each state tells."""
    kinds: dict[bool, dict[int, Mapping[str, Any]]] = {True: {}, False: {}}
    for position, state in enumerate(states):
        if not isinstance(state.get("use_muon"), bool):
            raise ValueError(
                f"the state of parameter {position} should have 'use_muon' True or False, but has {sorted(state)}"
            )
        kinds[state["use_muon"]][position] = {key: value for key, value in state.items() if key != "use_muon"}
    names = {True: "muon", False: "adamw"}
    return [Part(names[kind], group, of_kind) for kind, of_kind in kinds.items() if of_kind]


SOURCES: Mapping[str, Source] = {
    "torch-adamw": Source(
        "torch.optim.AdamW, and Adam without weight decay", {"adamw": _TORCH_ADAMW}, _torch_adamw_parts
    ),
    "torch-muon": Source("torch.optim.Muon", {"muon": _TORCH_MUON}, whole("muon")),
    "keller-muon": Source(
        "github.com/KellerJordan/Muon: Muon, MuonWithAuxAdam, and both for a single device",
        {"muon": _KELLER_MUON, "adam": _KELLER_ADAM},
        _keller_parts,
    ),
    "moonlight-muon": Source(
        "github.com/MoonshotAI/Moonlight: Muon",
        {"muon": _MOONLIGHT_MUON, "adamw": _MOONLIGHT_ADAMW},
        _moonlight_parts,
    ),
    "microsoft-dion": MICROSOFT_DION,
}
