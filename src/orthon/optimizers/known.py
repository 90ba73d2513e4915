"""The parameters of the model for which an optimizer was made: their names, and which were frozen then."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from orthon.model.places import places, spots
from orthon.step.words import some, warn


@dataclass(frozen=True)
class _Known:
    """A parameter. Its module is held weakly, as a tensor with a weak reference could not be swapped by `Module.to`."""

    module: "weakref.ref[nn.Module]"
    key: str
    name: str

    @property
    def param(self) -> nn.Parameter | None:
        """The parameter as it is now; None if it is gone."""
        module = self.module()
        return None if module is None else module._parameters.get(self.key)


class KnownParameters:
    """What `for_model` tells an optimizer about the parameters of its model. It keeps none of them alive.

    A copy of the optimizer, and one from a pickle, know nothing: their parameters are others.

    Attributes:
        others: the algorithm of what is no matrix, in groups that are added; None where no model is known.
        frozen: the parameters that were frozen and have had no gradient yet.

    Args:
        model: the model; None if there is none.
        others: see above.
    """

    def __init__(self, model: nn.Module | None = None, others: str | None = None) -> None:
        self.others = others
        self._all: dict[str, _Known] = {}
        self.frozen: list[_Known] = []
        if model is None:
            return
        names = {param: where[0].name for param, where in places(list(spots(model))).items()}
        for module in model.modules():
            for key, param in module._parameters.items():
                name = None if param is None else names.get(param)
                if param is None or name is None or name in self._all:
                    continue
                known = self._all[name] = _Known(weakref.ref(module), key, name)
                if not param.requires_grad:
                    self.frozen.append(known)

    def names(self, params: Sequence[Tensor]) -> list[str] | None:
        """Return the names of parameters; None if one of them is not known."""
        names = {id(known.param): known.name for known in self._all.values()}
        found = [names[id(param)] for param in params if id(param) in names]
        return found if len(found) == len(params) else None

    def warn_of_unfrozen(self, groups: Sequence[Mapping[str, Any]], owner: str) -> None:
        """Warn once if parameters have gradients that were frozen, and are in none of the groups."""
        for known in self.frozen:
            module = known.module()  # the property would take twice as long, in every step
            param = None if module is None else module._parameters.get(known.key)
            if param is not None and param.grad is not None and param.requires_grad:
                break
        else:
            return
        held = {id(param) for group in groups for param in group["params"]}
        self.frozen = [known for known in self.frozen if id(known.param) not in held]
        params = [(known.name, known.param) for known in self.frozen]
        names = [name for name, param in params if param is not None and param.grad is not None and param.requires_grad]
        if names:
            self.frozen = []
            have = "has a gradient, but was" if len(names) == 1 else "have gradients, but were"
            warn(
                f"{owner}: {some(names)} {have} frozen when the optimizer was made, so that its "
                "steps do not change them; give them to add_param_group, make the optimizer anew, or unfreeze them "
                "before it is made"
            )
