"""Where the parameters of a model are: their names, layers and meanings, without what wrappers add."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from orthon.model.stored import meaning, meaning_in_list
from orthon.model.wrappers import adapted_children, models_within, wrapped_child


@dataclass(frozen=True, eq=False)
class Spot:
    """A module in a model.

    Attributes:
        module: the module.
        full: the names on the way to it.
        names: those without wrappers.
        path: those without the names that adapters and reparametrizations put in, too.
        outer: the modules that stand for this one: itself, and the adapters around it.
        is_model: whether it is the whole model, or one that this is built around.
        at_top: whether it is a direct child of such a model.
        weight: of which this is the list of parametrizations; "" if it is none.
        outside: the module that has the weight then.
    """

    module: nn.Module
    full: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    outer: tuple[nn.Module, ...] = ()
    is_model: bool = True
    at_top: bool = False
    weight: str = ""
    outside: "Spot | None" = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where a parameter is.

    Attributes:
        spot: the module to which it belongs: the layer, also where a parametrization keeps it.
        leaf: what it is there, such as "weight"; `MAGNITUDES` for those of weight norm.
        full: its name in the model.
        name: that without wrappers.
        param: the parameter.
    """

    spot: Spot
    leaf: str
    full: str
    name: str
    param: nn.Parameter = field(repr=False)

    @property
    def layer(self) -> nn.Module:
        """The module to which it belongs."""
        return self.spot.module

    @property
    def layer_name(self) -> str:
        """What that module is called, "" if it is the model."""
        return self.spot.path[-1] if self.spot.path else ""


def spots(model: nn.Module) -> Iterator[Spot]:
    """Yield all modules of a model, outer ones first. One that is in several places comes as often."""
    yield from _walk(Spot(model, outer=(model,)), set())


def places(all_spots: list[Spot]) -> dict[nn.Parameter, list[Place]]:
    """Return all places of each parameter, in the order and under the names of `named_parameters`.

    The names are those without wrappers, if no two parameters get the same.
    """
    found: dict[nn.Parameter, list[Place]] = {}
    for spot in all_spots:
        for key, param in spot.module._parameters.items():
            if param is not None:
                found.setdefault(param, []).append(_place(spot, key, param))
    by_name: dict[str, set[int]] = {}
    for param, where in found.items():
        by_name.setdefault(where[0].name, set()).add(id(param))
    twice = {name for name, params in by_name.items() if len(params) > 1}
    named = {
        param: [replace(p, name=p.full) if where[0].name in twice else p for p in where]
        for param, where in found.items()
    }
    if len({where[0].name for where in named.values()}) < len(named):  # a full name is another's name without wrappers
        return {param: [replace(p, name=p.full) for p in where] for param, where in named.items()}
    return named


def _place(spot: Spot, key: str, param: nn.Parameter) -> Place:
    full, name = ".".join((*spot.full, key)), ".".join((*spot.names, key))
    if spot.outside is not None:
        assert isinstance(spot.module, ParametrizationList)
        return Place(spot.outside, meaning_in_list(spot.module, key, spot.weight), full, name, param)
    return Place(spot, meaning(spot.module, key), full, name, param)


def _walk(spot: Spot, above: set[int]) -> Iterator[Spot]:
    yield spot
    module = spot.module
    wrapped, adapted = wrapped_child(module), adapted_children(module)
    models = models_within(module) if spot.is_model else set()
    above = above | {id(module)}
    for key, child in module._modules.items():
        if child is None or id(child) in above:
            continue
        full = (*spot.full, key)
        if key == wrapped:
            inside = replace(spot, module=child, full=full, outer=(*spot.outer, child))
        elif key in adapted or _is_copy(spot):
            inside = replace(spot, module=child, full=full, names=(*spot.names, key), outer=(*spot.outer, child))
        else:
            inside = Spot(
                child,
                full,
                (*spot.names, key),
                (*spot.path, key),
                outer=(child,),
                is_model=key in models,
                at_top=spot.is_model,
            )
            lists = spot.outside
            if lists is None and key == "parametrizations" and _is_of_lists(child):
                inside = replace(inside, outside=spot)
            elif lists is not None and isinstance(child, ParametrizationList):
                inside = replace(inside, outside=lists, weight=key)
        yield from _walk(inside, above)


def _is_copy(spot: Spot) -> bool:
    """Return whether the children of a module are trained copies of one layer, each under the name of its adapter."""
    return bool(spot.full) and spot.full[-1] == "modules_to_save" and isinstance(spot.module, nn.ModuleDict)


def _is_of_lists(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleDict) and all(isinstance(m, ParametrizationList) for m in module.values())
