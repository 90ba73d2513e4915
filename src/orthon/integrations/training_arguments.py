"""What TrainingArguments says about the optimizer: every value is used, or refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from orthon.algorithms import RULES
from orthon.optimizers.common import NamedOptimizer
from orthon.optimizers.other_rules import default_lr, default_scalar_algorithm
from orthon.step.words import warn

# Arguments that choose among the Trainer's own optimizers, which an optimizer of Orthon's takes the place of.
_OF_OTHERS = ("optim", "optim_args", "optim_target_modules")

# Options, and the arguments that say the same.
_SAME = {
    "lr": ("learning_rate",),
    "weight_decay": ("weight_decay",),
    "betas": ("adam_beta1", "adam_beta2"),
    "eps": ("adam_epsilon",),
}
_OF_ADAM = ("betas", "eps")


def with_arguments(options: Mapping[str, Any], args: Any, optimizer: type[NamedOptimizer]) -> dict[str, Any]:
    """Return the options of `for_model`, with those that TrainingArguments adds.

    Args:
        options: what was given to `hf`.
        args: the Trainer's arguments.
        optimizer: what will be made; for the warning.

    Raises:
        ValueError: for an argument that has no use here, or that disagrees with an option.

    Warns:
        UserWarning: if neither gives a learning rate.
    """
    defaults = {field.name: field.default for field in fields(args)}
    for name in _OF_OTHERS:
        if (value := getattr(args, name)) != defaults[name]:
            raise ValueError(f"hf: TrainingArguments.{name} should not be set beside hf(...), but is {value!r}")
    companion = options.get("scalar_algorithm") or default_scalar_algorithm(optimizer)
    by_itself = not RULES[optimizer.algorithm].work.takes_matrices
    not_adamw = None
    if by_itself and optimizer.algorithm != "adamw":
        not_adamw = f"the optimizer is {optimizer.__name__}"
    elif companion != "adamw":
        not_adamw = f"scalar_algorithm is {companion!r}"
    result = dict(options)
    for option, names in _SAME.items():
        values = [getattr(args, name) for name in names]
        is_set = values != [defaults[name] for name in names]
        value = values[0] if len(values) == 1 else tuple(values)
        written = ", ".join(f"TrainingArguments.{name}={getattr(args, name)!r}" for name in names)
        if option in options:
            if is_set:
                _check_equal(option, options[option], value, written)
        elif option in _OF_ADAM and not_adamw is not None:
            if is_set:
                raise ValueError(f"hf: {written} is for AdamW, but {not_adamw}; give {option} to hf instead")
        elif option == "lr" and not is_set:
            warn(
                f"hf: {optimizer.__name__} takes its own default, lr={default_lr(optimizer)}, as {written} is at its "
                "default, which is meant for fine-tuning by AdamW; give lr to hf, or another learning_rate"
            )
        else:
            result[option] = value
    return result


def _check_equal(option: str, given: Any, value: Any, written: str) -> None:
    """Raise an error if an option differs from the argument that says the same."""
    given = tuple(given) if isinstance(given, list) else given
    if given != value:
        other = "; a learning rate for what AdamW updates is scalar_lr" if option == "lr" else ""
        raise ValueError(f"hf: {option}={given!r} and {written} disagree; give one of them{other}")
