"""The parameters of the model for which an optimizer was made: their names, and which were frozen then."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_MOST = 3  # names in a message


class KnownParameters:
    """What `for_model` tells an optimizer about the parameters of its model. It keeps none of them alive.

    A copy of the optimizer, and one from a pickle, know nothing: their parameters are others.

    Attributes:
        others: the algorithm of what is no matrix, in groups that are added; None where no model is known.

    Args:
        names: of all parameters of the model.
        others: see above.
    """

    def __init__(self, names: Mapping[nn.Parameter, str] | None = None, others: str | None = None) -> None:
        names = names or {}
        self.others = others
        self._names = {id(param): (weakref.ref(param), name) for param, name in names.items()}
        self._frozen = [self._names[id(param)] for param in names if not param.requires_grad]

    def name(self, param: Tensor) -> str | None:
        """Return the name of a parameter; None if it is not known."""
        known = self._names.get(id(param))
        return known[1] if known is not None and known[0]() is param else None

    def warn_of_unfrozen(self, groups: Sequence[Mapping[str, Any]], owner: str) -> None:
        """Warn once if parameters have gradients that were frozen, and are in none of the groups."""
        for ref, _ in self._frozen:
            param = ref()
            if param is not None and param.grad is not None and param.requires_grad:
                break
        else:
            return
        held = {id(param) for group in groups for param in group["params"]}
        alive = [(param, name) for ref, name in self._frozen if (param := ref()) is not None and id(param) not in held]
        names = [repr(name) for param, name in alive if param.grad is not None and param.requires_grad]
        self._frozen = [] if names else [(weakref.ref(param), name) for param, name in alive]
        if names:
            more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
            have = "has a gradient, but was" if len(names) == 1 else "have gradients, but were"
            warnings.warn(
                f"{owner}: {', '.join(names[:_MOST])}{more} {have} frozen when the optimizer was made, so that its "
                "steps do not change them; give them to add_param_group, make the optimizer anew, or unfreeze them "
                "before it is made",
                stacklevel=8,  # the line that calls step()
            )
