"""What parameters are called: in errors, in tables, and as seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

# What wrappers put into the names of a module's parameters.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIX = "module."  # of DistributedDataParallel


def parameter_names(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the names of the parameters of each param group; those without one are called by their position.

    Args:
        groups: all param groups of an optimizer.
    """
    given = [name for group in groups for name in group.get("param_names", ())]
    plain = iter(plain_names(given))
    return [
        [next(plain) for _ in group["param_names"]]
        if "param_names" in group
        else [f"param_groups[{index}]['params'][{i}]" for i in range(len(group["params"]))]
        for index, group in enumerate(groups)
    ]


def plain_names(names: Sequence[str]) -> list[str]:
    """Return parameters' names without what torch.compile, DDP and other wrappers add to them.

    A wrapper of the whole model is in front of all names. A module that a model itself calls `module` is not, and
    remains. Where two names would become one, all stay as they are.

    Args:
        names: of all parameters.
    """
    prefix = _PREFIX if all(name.startswith(_PREFIX) for name in names) else ""
    plain = [".".join(part for part in name.removeprefix(prefix).split(".") if part not in _WRAPPERS) for name in names]
    return plain if len(set(plain)) == len(set(names)) else list(names)
