"""What is asked for a model: whether arguments are what they should be."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from torch import nn

from orthon.algorithms import RULES

_EXAMPLE = '{"*.mlp.*.weight": {"rank_fraction": 0.5}}'


def check_model(model: object, where: str) -> None:
    """Raise a TypeError that `where` starts, if this is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{where}: model should be a torch.nn.Module, but is a {type(model).__name__}; for a list of parameters "
            "call the class, as in orthon.Dion(params, others='adamw')"
        )


def known_rule(called: str, name: object, *, elementwise: bool = False) -> str:
    """Return the name of a rule that is meant, as `meant` does.

    Args:
        called: what errors call the name.
        name: as it was given.
        elementwise: whether only those rules are allowed that take parameters of any shape.
    """
    return meant(called, name, sorted(rule for rule in RULES if not (elementwise and RULES[rule].work.takes_matrices)))


def meant(called: str, name: object, names: Collection[str]) -> str:
    """Return which of the names is meant. Upper and lower case are the same where one name alone is meant.

    Args:
        called: what errors call the name.
        name: as it was given.
        names: that are allowed.

    Raises:
        TypeError: for a name that is no string.
        ValueError: for a name that is none of these, or may mean several; it tells the nearest ones.
    """
    allowed = ", ".join(map(repr, names))
    if not isinstance(name, str):
        raise TypeError(f"{called} should be one of {allowed}, but is {name!r}")
    same = [each for each in names if each.lower() == name.lower()]
    if name in names or len(same) == 1:
        return name if name in names else same[0]
    near = same or get_close_matches(name.lower(), names, 2)
    likely = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"{called} should be one of {allowed}, but is {name!r}{likely}")


def check_overrides(overrides: object) -> None:
    """Raise a TypeError unless these are options by pattern and name, or None."""
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise TypeError(f"param_groups: overrides should be a dict such as {_EXAMPLE}, but is {overrides!r}")
    for pattern, options in overrides.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"param_groups: overrides should have patterns of names as keys, such as {_EXAMPLE}, but has "
                f"{pattern!r}"
            )
        if not isinstance(options, Mapping) or not all(isinstance(option, str) for option in options):
            raise TypeError(
                f"param_groups: overrides[{pattern!r}] should be a dict of options, such as "
                f'{{"rank_fraction": 0.5}} or {{"algorithm": "adamw"}}, but is {options!r}'
            )
