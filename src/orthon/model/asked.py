"""What `param_groups` is asked for: whether its arguments are what they should be."""

from collections.abc import Mapping

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


def known_rule(argument: str, name: object, *, elementwise: bool = False) -> str:
    """Return the name of a rule that is meant. Upper case counts as lower case.

    Args:
        argument: what the name was given for; starts the message with `param_groups`.
        name: as it was given.
        elementwise: whether only those rules are allowed that take parameters of any shape.

    Raises:
        ValueError: for a name that no such rule has.
    """
    allowed = sorted(rule for rule in RULES if not (elementwise and RULES[rule].work.takes_matrices))
    for each in (name, name.lower()) if isinstance(name, str) else ():
        if each in allowed:
            return each
    raise ValueError(f"param_groups: {argument} should be one of {', '.join(map(repr, allowed))}, but is {name!r}")


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
