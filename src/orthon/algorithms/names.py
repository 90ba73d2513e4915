"""The keys of a param group: which are options, and which belong to somebody else."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from orthon.algorithms.options import SCHEDULER_KEYS, Group, is_number
from orthon.algorithms.rule import RULES, options_of

OLD_ADJUST_LR_FN = "lr_scale"
"""What `adjust_lr_fn` was called before. As a number it belongs to others: a layer's factor of the learning rate."""

HINTS = frozenset({"foreach", "fused"})
"""What torch's optimizers take as hints about their implementation. They change nothing in the rules for matrices."""

# What a param group is, beside its options.
_OF_GROUPS = frozenset({"params", "param_names", "seed_names", "name", "reason", "algorithm", "others"})

# What other packages call an option, and its name here. The pages in docs/move/ have the same, with the packages.
_THEIRS: Mapping[str, str] = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    **dict.fromkeys(("mu", "ef_decay"), "momentum"),
    **dict.fromkeys(("epsilon", "adamw_eps"), "eps"),
    **dict.fromkeys(("beta1", "adamw_betas"), "betas"),
    "muon_beta2": "beta2",
    "ns_steps": "polar_steps",
    **dict.fromkeys(("ns_coefficients", "use_triton", "newton_schulz_func"), "polar"),
    "cautious_wd": "cautious_weight_decay",
    "power_iters": "power_iterations",
    "adjust_lr": "adjust_lr_fn",
    "selection_scope": "selection",
    **dict.fromkeys(("flatten", "num_heads", "split_sizes"), "view"),
    "mixed_precision_config": "state_dtype",
    "replicate_mesh_grad_sync": "sync_gradients",
}

# What they have, and is said in another way or not at all here.
_OTHERWISE: Mapping[str, str] = {
    "use_muon": "a group says it by 'algorithm', such as 'muon' or 'adamw'",
    **dict.fromkeys(("muon_params", "adamw_params"), "give param groups with 'algorithm', such as 'muon' or 'adamw'"),
    **dict.fromkeys(
        ("replicate_mesh", "outer_shard_mesh", "inner_shard_mesh", "distributed_mesh"),
        "meshes are read off the parameters; with DistributedDataParallel give 'replicas'",
    ),
    **dict.fromkeys(
        ("qr_method", "oversample", "cqr_warmup_steps"),
        "there is one method to make columns orthonormal; 'precision' chooses its arithmetic",
    ),
}

# As much must a key be like an option to be a slip of the pen: `beta` and `rank_frac` are, `lr_mult` is not.
_ALIKE = 0.8
_SHORTEST = 4  # of beginnings, such as `rank` of `rank_fraction`


def check_keys(group: Group, where: str, *, by_schedule: bool = False) -> None:
    """Raise a ValueError for a key that is meant as an option, but is none of the group's rule.

    All other keys are left to whoever has put them there, as torch does.

    Args:
        group: a param group, with its algorithm.
        where: names the group; starts the message.
        by_schedule: whether a scheduler may have been at work, which sets "momentum" in every group.
    """
    options = options_of(group)
    for key in group.keys() - options.keys() - _OF_GROUPS - SCHEDULER_KEYS:
        if key in HINTS or (by_schedule and key == "momentum"):
            continue
        if why := mistaken(key, group[key], options):
            allowed = ", ".join(sorted(options))
            raise ValueError(f"{where}: unknown option {key!r} for {group['algorithm']}{why}; it takes {allowed}")


def mistaken(key: object, value: object, options: Collection[str]) -> str:
    """Return what somebody meant by a key that is none of the options, in brackets; "" if it is not meant as one."""
    if not isinstance(key, str):
        return ""
    if key == OLD_ADJUST_LR_FN:
        return "" if is_number(value) else " (called 'adjust_lr_fn' now, as in torch.optim.Muon)"
    if owners := _rules_with(key):
        return f" (an option of {owners})"
    if key in _OTHERWISE:
        return f" ({_OTHERWISE[key]})"
    if key in _THEIRS:
        owners = "" if _THEIRS[key] in options else _rules_with(_THEIRS[key])
        return f" (called {_THEIRS[key]!r} here{owners and f', an option of {owners}'})"
    if own := likely(key, options):
        return f" (did you mean {' or '.join(map(repr, own))}?)"
    others = likely(key, {name for each in RULES.values() for name in each.options})
    meant = " or ".join(f"{name!r} of {_rules_with(name)}" for name in others)
    return f" (did you mean {meant}?)" if meant else ""


def likely(key: str, options: Iterable[str]) -> list[str]:
    """Return the options that a key resembles, in the order of the alphabet."""
    # `weight_decay_mult` is no slip of the pen.
    names = [name for name in options if not key.startswith(f"{name}_") and not key.endswith(f"_{name}")]
    begun = [name for name in names if len(key) >= _SHORTEST and name.startswith(key)]
    return sorted({*begun, *get_close_matches(key, names, 3, _ALIKE)})


def _rules_with(option: str) -> str:
    return ", ".join(sorted(rule.name for rule in RULES.values() if option in rule.options))
