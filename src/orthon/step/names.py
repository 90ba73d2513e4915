"""What parameters are called: in errors, in tables, and as seeds."""

from collections.abc import Mapping
from functools import cache
from typing import Any

# What wrappers put into the names of a module's parameters.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def parameter_names(group: Mapping[str, Any], index: int) -> list[str]:
    """Return the names of a group's parameters; those without one are called by their position.

    Args:
        group: a param group.
        index: its position among the param groups.
    """
    if "param_names" in group:
        return [plain_name(name) for name in group["param_names"]]
    return [f"param_groups[{index}]['params'][{i}]" for i in range(len(group["params"]))]


def seed_names(group: Mapping[str, Any], index: int) -> list[str]:
    """Return what the random numbers of a group's parameters follow from: their names.

    They stay the same where a state without names is loaded by an optimizer that has some: then the group holds what
    they have followed from so far.

    Args:
        group: a param group.
        index: its position among the param groups.
    """
    return list(group["seed_names"]) if "seed_names" in group else parameter_names(group, index)


@cache
def plain_name(name: str) -> str:
    """Return a parameter's name without what torch.compile, DDP and other wrappers add to it."""
    name = name.removeprefix("module.")
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
