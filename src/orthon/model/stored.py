"""The parameters behind a weight: what torch's reparametrizations compute it from.

`torch.nn.utils.parametrize` keeps `parametrizations.weight.original`, weight norm two of these: magnitudes and
directions. The older hooks keep `weight_orig`, or `weight_g` and `weight_v`. Pruning keeps `weight_orig`, too.
"""

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

MAGNITUDES = "magnitudes"
"""What stands for the name of a parameter that holds the lengths of a weight's rows, by weight norm."""


def stored(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return the parameter of a module that is its weight, or from which the weight is computed; None if none is.

    Args:
        module: any module.
        name: of the weight, such as "weight". It is not asked for: spectral norm would change its buffers.
    """
    own = module._parameters
    if own.get(name) is not None:
        return own[name]
    for old in (f"{name}_v", f"{name}_orig"):
        if own.get(old) is not None and meaning(module, old) == name:
            return own[old]
    lists = module._modules.get("parametrizations")
    of_weight = lists._modules.get(name) if lists is not None else None
    if isinstance(of_weight, ParametrizationList):
        for key, param in of_weight._parameters.items():
            if param is not None and meaning_in_list(of_weight, key, name) == name:
                return param
    return None


def meaning(module: nn.Module, key: str) -> str:
    """Return for which weight of a module a parameter stands, `MAGNITUDES`, or the parameter's own name."""
    name, _, kind = key.rpartition("_")
    own = module._parameters
    if not name or name in own:
        return key
    if kind in ("g", "v") and f"{name}_g" in own and f"{name}_v" in own:
        return name if kind == "v" else MAGNITUDES
    if kind == "orig" and name in module.__dict__:
        return name
    return key


def meaning_in_list(of_weight: ParametrizationList, key: str, name: str) -> str:
    """Return the same for a parameter in the list of a weight's parametrizations."""
    if key == "original":
        return name
    if "original0" in of_weight._parameters and any(type(p).__name__ == "_WeightNorm" for p in of_weight):
        return name if key == "original1" else MAGNITUDES if key == "original0" else key
    return key
