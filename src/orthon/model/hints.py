"""What a model itself says about its parameters: which layers are heads, what is tied, and what does not decay."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from orthon.model.places import Spot
from orthon.model.wrappers import unwrapped

# Switches in a model or in its settings that make one weight of an embedding and an output head.
_TIES = ("tie_word_embeddings", "share_embeddings_and_output_weights", "enable_weight_tying", "weight_tying")
_SETTINGS = ("config", "args", "model_args")


def declared_heads(spots: Iterable[Spot]) -> set[nn.Module]:
    """Return the output layers that a model tells, or that end an nn.Sequential."""
    heads: set[nn.Module] = set()
    for spot in spots:
        module = spot.module
        get_head = getattr(module, "get_output_embeddings", None)
        if callable(get_head):
            try:
                head = get_head()
            except NotImplementedError:  # of models without a head
                head = None
            if isinstance(head, nn.Module):
                heads |= {head, unwrapped(head)}
        if spot.is_model and isinstance(module, nn.Sequential) and len(module) > 1:
            last = module[-1]
            if isinstance(unwrapped(last), nn.Linear | _ConvNd):
                heads |= {last, unwrapped(last)}
    return heads


def is_half_of_a_tie(param: nn.Parameter, spots: Iterable[Spot]) -> bool:
    """Return whether an output head is one with an embedding that another pipeline stage has.

    The stages must treat their copies alike. Here the embedding is missing, so the model has to tell: by a switch in
    its settings, or by the attribute `shared_embedding` of the weight, as Megatron does.

    Args:
        param: the weight of the head.
        spots: the modules of the model.
    """
    if getattr(param, "shared_embedding", False):
        return True
    tied = False
    for spot in spots:
        module = unwrapped(spot.module)
        if isinstance(module, nn.Embedding) and module.num_embeddings == param.shape[0]:
            return False
        for settings in (module, *(getattr(module, name, None) for name in _SETTINGS)):
            if any(_value(settings, switch) is True for switch in _TIES):
                size = _value(settings, "vocab_size")
                tied |= size is None or size == param.shape[0]
    return tied


def undecayed(spots: Iterable[Spot]) -> set[str]:
    """Return the full names of parameters that a method `no_weight_decay` excludes, as models of timm have it."""
    names: set[str] = set()
    for spot in spots:
        method = getattr(type(spot.module), "no_weight_decay", None)
        if callable(method):
            found = method(spot.module)
            names |= {".".join((*spot.full, str(name))) for name in found or ()}
    return names


def _value(settings: Any, name: str) -> Any:
    if isinstance(settings, dict):
        return settings.get(name)
    try:
        return getattr(settings, name, None)
    except RuntimeError:  # raised by a config in which the layers differ
        return None
