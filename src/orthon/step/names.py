"""What parameters are called: in errors, in tables, and as seeds."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

# What wrappers put into the names of a module's parameters. Nobody else gives these names.
OF_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIX = "module."  # of DistributedDataParallel


def parameter_names(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the names of the parameters of each param group; those without one are called by their position.

    Args:
        groups: all param groups of an optimizer.
    """
    given = [name for group in groups for name in group.get("param_names", ())]
    plain = iter(plain_names(given))
    return [
        [next(plain) for _ in group["param_names"]] if "param_names" in group else _positions(group, index)
        for index, group in enumerate(groups)
    ]


def plain_names(names: Sequence[str]) -> list[str]:
    """Return parameters' names without what torch.compile, DDP and other wrappers add to them.

    A wrapper of the whole model is in front of all names. A module that a model itself calls `module` is not, and
    remains. Where two names would become one, all stay as they are.

    Args:
        names: of all parameters.
    """
    plain = [  # the last part is no module's name
        ".".join([*(module for module in modules if module not in OF_WRAPPERS), own])
        for *modules, own in (name.split(".") for name in names)
    ]
    while plain and all(name.startswith(_PREFIX) for name in plain):
        plain = [name.removeprefix(_PREFIX) for name in plain]
    return plain if len(set(plain)) == len(set(names)) else list(names)


def seed_names(group: Mapping[str, Any], index: int) -> list[str]:
    """Return what the random numbers of a group's parameters follow from: their names.

    They stay the same where a state without names is loaded by an optimizer that has some: then the group holds what
    they have followed from so far.

    Args:
        group: a param group.
        index: its position among the param groups.
    """
    if "seed_names" in group:
        return list(group["seed_names"])
    if "param_names" in group:
        return [plain_name(name) for name in group["param_names"]]
    return _positions(group, index)


@cache
def plain_name(name: str) -> str:
    """Return a parameter's name without what torch.compile, DDP and other wrappers add to it."""
    name = name.removeprefix(_PREFIX)
    return ".".join(part for part in name.split(".") if part not in OF_WRAPPERS)


def _positions(group: Mapping[str, Any], index: int) -> list[str]:
    return [f"param_groups[{index}]['params'][{i}]" for i in range(len(group["params"]))]
