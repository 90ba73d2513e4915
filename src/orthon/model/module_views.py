"""Modules whose weights are read as matrices in a way that the module tells, not the shape.

Torch's modules are known by their types. Those of transformers and torchtitan are known by the names of their classes,
so that the core need not import them, and by their attributes. The tables here and beside were read off transformers
5.23 and torchtitan 0.2.2. A module that is not listed, or whose sizes do not fit, tells nothing: blocks in the wrong
places would be worse than none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from orthon.model.attention_views import attention, multihead
from orthon.model.expert_views import experts, stacked_experts, torchtitans_experts
from orthon.model.layers import Finding, Layer, is_conv1d
from orthon.model.places import Place, Spot
from orthon.model.roles import DEPTHWISE, PATCHES, Role, hidden
from orthon.model.stored import stored
from orthon.model.wrappers import class_names
from orthon.sharding.matrix_view import MatrixView

_CONVOLUTION = "convolution: output channels × (input channels and places of the kernel)"
_FUSED_GATE = "gate and up in one weight: a matrix each"
_IN_OUT = "matrix inside the model, stored as (in, out)"

# Weights that hold gate and up, in either order: the name in the module → classes of the module.
_GATED = {
    "gate_up_proj": {
        *("DiaMLP", "EsmFold2SwiGLU", "GlmMLP", "Glm4MLP", "Glm4vTextMLP", "GlmImageTextMLP", "GlmOcrTextMLP"),
        *("MiniMaxM3VLDenseMLP", "Phi3MLP", "Phi4MultimodalMLP", "Phi4MultimodalAudioMLP", "Zamba2MLP"),
    },
    "Wi": {"ModernBertMLP", "ModernBertDecoderMLP"},
}


def known_roles(
    spots: Iterable[Spot], places: Mapping[nn.Parameter, Sequence[Place]], *, per_head: bool
) -> dict[nn.Parameter, Role]:
    """Return the roles of those parameters whose modules are known.

    Args:
        spots: the modules of a model.
        places: where its parameters are.
        per_head: whether each attention head becomes a matrix of its own.
    """
    roles: dict[nn.Parameter, Role] = {}
    copies = _copies(places)
    for spot in spots:  # outer modules come first: they know more than the layers inside
        for weight, role in _findings(spot.path, spot.module, per_head=per_head):
            for copy in (weight, *copies.get(weight, ())):
                roles.setdefault(copy, role)
    return roles


def _copies(places: Mapping[nn.Parameter, Sequence[Place]]) -> dict[nn.Parameter, list[nn.Parameter]]:
    """Return for each parameter those in the same place: PEFT trains copies of a layer, and keeps the layer itself."""
    at: dict[tuple[Sequence[str], str, torch.Size], list[nn.Parameter]] = {}
    keys = {
        param: [(place.spot.path, place.leaf, param.shape) for place in where if not is_lazy(param)]
        for param, where in places.items()
    }
    for param, its in keys.items():
        for key in its:
            at.setdefault(key, []).append(param)
    return {param: [copy for key in its for copy in at[key]] for param, its in keys.items()}


def _findings(path: Sequence[str], module: nn.Module, *, per_head: bool) -> Iterator[Finding]:
    yield from _convolution(path, module)
    yield from multihead(module, per_head=per_head)
    yield from attention(module, per_head=per_head)
    yield from _gated(module)
    yield from _conv1d(module)
    yield from experts(module)
    yield from torchtitans_experts(module)
    yield from stacked_experts(module)


def _convolution(path: Sequence[str], module: nn.Module) -> Iterator[Finding]:
    weight = stored(module, "weight")
    if not isinstance(module, _ConvNd) or weight is None:
        return
    if module.groups > 1 and module.groups in (module.in_channels, module.out_channels):
        yield weight, DEPTHWISE
        return
    patches = module.stride == module.kernel_size and max(module.kernel_size) > 1 and not module.transposed
    # An image has up to four channels. Such layers inside a model have more, and halve the resolution.
    if patches and (module.in_channels <= 4 or any("patch_embed" in part for part in path[-2:])):
        yield weight, PATCHES
        return
    view = MatrixView(kind="convolution", transposed=module.transposed, blocks=module.groups)
    yield weight, hidden(_CONVOLUTION, view, "convolutions")


def _gated(module: nn.Module) -> Iterator[Finding]:
    names = class_names(module)
    for child, classes in _GATED.items():
        if names & classes and (layer := Layer.of(module, child)) is not None and layer.rows % 2 == 0:
            yield layer.weight, layer.role(_FUSED_GATE, blocks=2)


def _conv1d(module: nn.Module) -> Iterator[Finding]:
    weight = stored(module, "weight")
    if weight is not None and is_conv1d(module):
        yield weight, hidden(_IN_OUT, MatrixView(transposed=True))
