"""Orthon's optimizers inside those of Accelerate, Lightning and Fabric, which wrap an optimizer in one of their own."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthon.optimizers.mixed import MixedOptimizer

# Under which names wrappers keep the optimizer.
_INSIDE = ("optimizer", "_optimizer")


def unwrapped(optimizer: object) -> object:
    """Return the optimizer inside all wrappers. What is no wrapper is returned itself."""
    seen: set[int] = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        attributes = getattr(optimizer, "__dict__", {})
        inner = next((attributes[name] for name in _INSIDE if attributes.get(name) is not None), None)
        if inner is None:
            break
        optimizer = inner
    return optimizer


def consolidate(optimizer: object) -> None:
    """Make the state of the replicas equal, as the method `consolidate` does, also through wrappers.

    Args:
        optimizer: one of Orthon's, or one of Accelerate's or Lightning's around it.

    Raises:
        TypeError: for any other.
    """
    own_optimizer(optimizer, "consolidate").consolidate()


def skipped_steps(optimizer: object) -> int:
    """Return how many steps an optimizer has left out, as its attribute `skipped_steps` does, also through wrappers.

    Args:
        optimizer: one of Orthon's, or one of Accelerate's or Lightning's around it.

    Raises:
        TypeError: for any other.
    """
    return own_optimizer(optimizer, "skipped_steps").skipped_steps


def own_optimizer(optimizer: object, where: str) -> "MixedOptimizer":
    """Return the optimizer of Orthon's inside all wrappers, or raise a TypeError that `where` starts."""
    from orthon.optimizers.mixed import MixedOptimizer

    inner = unwrapped(optimizer)
    if not isinstance(inner, MixedOptimizer):
        raise TypeError(f"{where}: optimizer should be one of Orthon's, but is a {type(inner).__name__}")
    return inner
