"""The role of each parameter of a model."""

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from orthon.model.adapters import adapter_role
from orthon.model.hints import declared_heads, is_half_of_a_tie, undecayed
from orthon.model.module_views import known_roles
from orthon.model.places import Place, places, spots
from orthon.model.roles import (
    BARE,
    EMBEDDING,
    EMPTY,
    HEAD,
    HIDDEN,
    HIGHER,
    NORM,
    ONE_LINE,
    ROUTER,
    TIED,
    Role,
    without_decay,
)
from orthon.model.stored import MAGNITUDES
from orthon.model.wrappers import class_names

# Names of a model's last layer. The second kind counts at the top alone, as layers inside a model have such names, too.
_HEADS = {"lm_head", "output_layer", "unembed", "unembedding", "embed_out", "classification_head"}
_HEADS_AT_TOP = {"head", "heads", "fc", "output", "classifier", "score", "out", "decoder"}

_EMBEDDING_WORDS = ("embed", "wte", "wpe", "token", "pos_", "position")
# Names of parameters with more than two dims that are no stacks of matrices.
_TABLE_WORDS = ("prompt", "latent", "quer", "table", "bias")

_LAYERS = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, _ConvNd)


class Deciding:
    """Decides about the parameters of a model.

    Attributes:
        places: where each parameter is, in the model's order.

    Args:
        model: any module.
        per_head: whether each attention head becomes a matrix of its own.
    """

    def __init__(self, model: nn.Module, *, per_head: bool) -> None:
        self._spots = list(spots(model))
        self.places = places(self._spots)
        modules = [spot.module for spot in self._spots]
        self._vocabularies = {m.num_embeddings for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        # Where a layer takes as many numbers as there are tokens, that number does not tell a head from others.
        self._inputs = {m.in_features for m in modules if isinstance(m, nn.Linear)}
        self._heads = declared_heads(self._spots)
        self._known = known_roles(self._spots, self.places, per_head=per_head)
        self._undecayed = undecayed(self._spots)

    def role(self, param: nn.Parameter) -> Role:
        """Return the role of a parameter.

        Raises:
            ValueError: for a parameter of a lazy module that has no shape yet.
        """
        where = self.places[param]
        if is_lazy(param):
            raise ValueError(
                f"param_groups: parameter {where[0].name!r}: has no shape yet, as its module is lazy; "
                "let the model see an input first"
            )
        role = self._role(param, where)
        marked = getattr(param, "_no_weight_decay", False) or any(place.full in self._undecayed for place in where)
        return without_decay(role) if marked else role

    def _role(self, param: nn.Parameter, where: list[Place]) -> Role:
        first, known = where[0], self._known.get(param)
        if param.numel() == 0:
            return EMPTY
        role = adapter_role(first, param, known)
        if role is None:
            return self._role_in_layer(param, where, known)
        return ONE_LINE if role.is_hidden_matrix and 1 in param.shape[:2] else role

    def _role_in_layer(self, param: nn.Parameter, where: list[Place], known: Role | None) -> Role:
        """Return the role of a parameter that is no adapter's."""
        first, leaf = where[0], where[0].leaf
        if any(isinstance(place.layer, nn.Embedding | nn.EmbeddingBag) for place in where):
            is_tied = any(not isinstance(place.layer, nn.Embedding | nn.EmbeddingBag) for place in where)
            return TIED if is_tied else EMBEDDING
        is_norm = leaf == MAGNITUDES or any("norm" in type(place.layer).__name__.lower() for place in where)
        if is_norm or leaf == "bias" or leaf.endswith("_bias") or param.ndim < 2:
            return NORM
        if not isinstance(first.layer, nn.Linear) and any(word in leaf.lower() for word in _EMBEDDING_WORDS):
            return EMBEDDING
        is_used = known is not None or any(_multiplies(place, param) for place in where)
        if known is None and param.ndim > 2:
            stacked = sum(size > 1 for size in param.shape) > 2 and not any(
                word in leaf.lower() for word in _TABLE_WORDS
            )
            return HIGHER if is_used or stacked else BARE
        matrix = known.view.read(param.shape).matrix(0) if known and known.view else param.shape
        if 1 in matrix and is_used and (known is None or known.is_hidden_matrix):
            return ONE_LINE
        if (is_used or leaf == "weight") and any(self._is_head(place, param, known) for place in where):
            return TIED if is_half_of_a_tie(param, self._spots) else HEAD
        if known is not None:
            return known
        if first.layer_name == "router" or (first.layer_name == "gate" and param.shape[0] < param.shape[1]):
            return ROUTER
        return HIDDEN if is_used else BARE

    def _is_head(self, place: Place, param: nn.Parameter, known: Role | None) -> bool:
        return (
            any(module in self._heads for module in place.spot.outer)
            or place.layer_name in _HEADS
            or (place.spot.at_top and place.layer_name in _HEADS_AT_TOP)
            or (known is None and isinstance(place.layer, nn.Linear) and self._scores_tokens(place, param.shape[0]))
        )

    def _scores_tokens(self, place: Place, rows: int) -> bool:
        return rows in self._vocabularies and (place.spot.at_top or rows not in self._inputs)


def _multiplies(place: Place, param: nn.Parameter) -> bool:
    """Return whether a layer is known to multiply by a parameter: by its type, or as it looks like a linear layer."""
    layer = place.layer
    if isinstance(layer, _LAYERS):
        return place.leaf.startswith("weight") or place.leaf.endswith("_weight")
    if not place.leaf.startswith("weight"):
        return False
    sizes = {(getattr(layer, "in_features", None), getattr(layer, "out_features", None))}
    sizes.add((getattr(layer, "input_size", None), getattr(layer, "output_size", None)))
    shape = tuple(param.shape[-2:])
    is_linear = any("linear" in name.lower() for name in class_names(layer))
    return is_linear or bool(sizes & {shape, shape[::-1]})
