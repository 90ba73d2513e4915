"""Parameters of adapters, by the names that PEFT, torchtune and loralib give them."""

from torch import nn

from orthon.model.places import Place
from orthon.model.roles import EMBEDDING, NORM, ROTATION, Role, lora

# The parameter, or the module or the dictionary that has it, is called:
_FACTORS = {"lora_A", "lora_B", "lora_a", "lora_b", "lora_embedding_B"}
_EMBEDDINGS = {"lora_embedding_A", "trainable_tokens_delta"}  # some columns or rows for each token
_ROTATIONS = {"oft_R", "oft_r", "boft_R"}
_VECTORS = {"lora_magnitude_vector", "lora_magnitude", "lora_E", "boft_s", "ia3_l", "vera_lambda_b", "vera_lambda_d"}


def adapter_role(place: Place, param: nn.Parameter, known: Role | None) -> Role | None:
    """Return the role of a parameter of an adapter; None for any other.

    Args:
        place: where it is.
        param: the parameter.
        known: its role by `known_roles`, if it has one.
    """
    if isinstance(place.layer, nn.Embedding | nn.EmbeddingBag):
        return EMBEDDING if place.leaf in _FACTORS else None  # loralib
    # The name may be followed by that of the adapter, and by "weight".
    near = {*place.spot.path[-2:], place.leaf}
    if near & _EMBEDDINGS:
        return EMBEDDING
    if near & _ROTATIONS:
        return ROTATION
    if near & _VECTORS or (near & _FACTORS and param.ndim < 2):
        return NORM
    if near & _FACTORS and (param.ndim == 2 or (known is not None and known.is_hidden_matrix)):
        return lora(None if known is None else known.view)
    return None
