"""Weights whose module tells how they are read as matrices: convolutions, experts, fused projections, heads.

Torch's modules are known by their types. Those of transformers are known by the names of their classes, so that the
core need not import it, and by what the modules say of themselves; the tables were read off its version 5.23. A module
that is not listed, or whose sizes do not fit, tells nothing: blocks in the wrong places would be worse than none.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from orthon.model.roles import DEPTHWISE, PATCHES, Role, hidden
from orthon.sharding.matrix_view import MatrixView

_Finding = tuple[nn.Parameter, Role]

FUSED_QKV = "query, key and value in one weight: a matrix each"
INTERLEAVED_QKV = "query, key and value interleaved by heads: one matrix for all"
FUSED_GATE = "gate and up in one weight: a matrix each"
HEADS = "attention heads: a matrix each"
IN_OUT = "matrix inside the model, stored as (in, out)"
EXPERTS = "experts: a matrix each"
FUSED_EXPERTS = "experts with gate and up in one weight: two matrices each"
INTERLEAVED_EXPERTS = "experts with gate and up interleaved: a matrix each for both"
CONVOLUTION = "convolution: output channels × (input channels and places of the kernel)"

# Projections of query, key and value in one weight, by its name in the attention module and the module's class.
# Rows of all queries, all keys and all values, of equal sizes:
_THIRDS = {
    "Wqkv": {"ModernBertAttention", "MptAttention"},
    "c_attn": {"CausalSelfAttention"},  # of nanoGPT
    "att_proj": {"BarkSelfAttention"},
    "qkv": {
        *("BlipAttention", "Blip2Attention", "InstructBlipAttention", "InstructBlipVideoAttention", "MgpstrAttention"),
        *("Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention"),
        *("Qwen3_5VisionAttention", "Qwen3_5MoeVisionAttention", "Qwen3OmniMoeVisionAttention"),
        *("Glm4vVisionAttention", "Glm4vMoeVisionAttention", "GlmImageVisionAttention", "GlmOcrVisionAttention"),
        *("Ernie4_5_VLMoeVisionAttention", "Florence2VisionWindowAttention", "GotOcr2VisionAttention"),
        *("HieraMaskUnitAttention", "SamVisionAttention", "SamHQVisionAttention", "Sam2MultiScaleAttention"),
        *("SegGptAttention", "TimesformerSelfAttention", "VitDetAttention"),
    },
}
# The same, of heads·d rows for the queries, and kv_heads·d for keys and for values:
_GROUPED = {
    "qkv_proj": {"Phi3Attention", "Phi4MultimodalAttention"},
    "Wqkv": {"DbrxAttention"},
    "c_attn": {"GPTBigCodeAttention"},  # with multi_query
    "query_key_value": {"FalconAttention"},  # with multi_query in the old architecture
}
# Rows of the first head (or group of heads) for query, key and value, then of the second head, and so on. A view has
# no blocks of scattered rows. Blocks of contiguous rows would be single heads (which is what `per_head` makes of
# them) or mixtures of all three; so the weight stays one matrix, which is right for any order of the rows.
_INTERLEAVED = {
    "query_key_value": {
        *("GPTNeoXAttention", "GPTNeoXJapaneseAttention", "BloomAttention", "FalconAttention", "PersimmonAttention"),
    },
    "c_attn": {"GPTBigCodeAttention"},
    "qkv_proj": {"MiniMaxLightningAttention"},
}
_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "Wo", "proj")

# Gate and up (or up and gate) in one weight, by its name.
_GATED = {
    "gate_up_proj": {
        *("DiaMLP", "EsmFold2SwiGLU", "GlmMLP", "Glm4MLP", "Glm4vTextMLP", "GlmImageTextMLP", "GlmOcrTextMLP"),
        *("MiniMaxM3VLDenseMLP", "Phi3MLP", "Phi4MultimodalMLP", "Phi4MultimodalAudioMLP", "Zamba2MLP"),
    },
    "Wi": {"ModernBertMLP", "ModernBertDecoderMLP"},
}

# Experts that do not tell themselves whether they are stored as (expert, in, out).
_PLAIN_EXPERTS = {
    "Llama4TextExperts": True,
    "LongcatFlashExperts": False,
    "InklingSharedExperts": False,
    "Step3p7Experts": False,
}
_EXPERT_WEIGHTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def known_roles(model: nn.Module, *, per_head: bool) -> dict[int, Role]:
    """Return the roles of parameters that their modules tell, by the parameters' ids."""
    roles: dict[int, Role] = {}
    for name, module in model.named_modules():  # outer modules come first: they know more than the layers inside
        for find in _FINDERS:
            for weight, role in find(name, module, per_head):
                roles.setdefault(id(weight), role)
    return roles


def class_names(module: nn.Module) -> set[str]:
    """Return the names of a module's class and of those it derives from; fully_shard makes a class of its own."""
    return {cls.__name__ for cls in type(module).__mro__}


def _convolution(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    weight = module._parameters.get("weight")
    if not isinstance(module, _ConvNd) or weight is None:
        return
    if module.groups > 1 and module.groups in (module.in_channels, module.out_channels):
        yield weight, DEPTHWISE
        return
    patches = module.stride == module.kernel_size and max(module.kernel_size) > 1 and not module.transposed
    # An image has up to four channels; inside a model, such layers halve the resolution of many more.
    if patches and (module.in_channels <= 4 or any("patch_embed" in part for part in name.split(".")[-2:])):
        yield weight, PATCHES
        return
    view = MatrixView(kind="convolution", transposed=module.transposed, blocks=module.groups)
    yield weight, hidden(CONVOLUTION, view, "convolutions")


def _multihead(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    if not isinstance(module, nn.MultiheadAttention):
        return
    heads = module.num_heads if per_head else 1
    if module.in_proj_weight is not None:
        yield module.in_proj_weight, hidden(HEADS if heads > 1 else FUSED_QKV, MatrixView(blocks=3 * heads))
    if heads == 1:
        return
    for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
        if weight is not None:  # kdim or vdim is given
            yield weight, hidden(HEADS, MatrixView(blocks=heads))
    if (output := _Layer.of(module, "out_proj")) is not None:
        yield output.weight, output.role(HEADS, blocks=heads, side="columns")


def _attention(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    """Find the projections of transformers' attention modules, and of those with the same attributes."""
    if isinstance(module, nn.MultiheadAttention):
        return
    heads = _Heads(module) if per_head else None
    fused = False
    for child, _ in module.named_children():
        layer = _Layer.of(module, child)
        role = _fused(module, layer, child) if layer is not None else None
        if layer is None or role is None:
            continue
        fused = True
        if heads is not None and layer.rows in heads.fused_rows and heads.size is not None:
            role = layer.role(HEADS, blocks=layer.rows // heads.size)  # in whatever order
        yield layer.weight, role
    if heads is None or heads.size is None or not (fused or hasattr(module, "k_proj")):
        return
    for child, count in (("q_proj", heads.queries), ("k_proj", heads.keys), ("v_proj", heads.keys)):
        layer = _Layer.of(module, child)
        if layer is not None and count > 1 and layer.rows == count * heads.size:
            yield layer.weight, layer.role(HEADS, blocks=count)
    for child in _OUTPUTS:
        layer = _Layer.of(module, child)
        if layer is not None and heads.queries > 1 and layer.columns == heads.queries * heads.size:
            yield layer.weight, layer.role(HEADS, blocks=heads.queries, side="columns")


def _fused(module: nn.Module, layer: "_Layer", child: str) -> Role | None:
    """Return the role of a weight in which query, key and value lie together, if it is one."""
    names = class_names(module)
    thirds = layer.rows == 3 * layer.columns or (child == "qkv" and layer.rows % 3 == 0)
    if names & _THIRDS.get(child, set()) and thirds:
        return layer.role(FUSED_QKV, blocks=3)
    if child == "c_attn" and layer.transposed:  # GPT-2 and its like
        part = getattr(module, "split_size", 0)
        count = layer.rows // part if part and layer.rows % part == 0 else 1  # 2 in cross-attention: key and value
        return layer.role(FUSED_QKV, blocks=count) if count > 1 else None
    if names & _GROUPED.get(child, set()) and not _interleaves(module):
        heads = _Heads(module)
        sizes = tuple(count * (heads.size or 0) for count in (heads.queries, heads.keys, heads.keys))
        if sum(sizes) == layer.rows:
            return layer.role(FUSED_QKV, blocks=3 if len(set(sizes)) == 1 else sizes)
    if names & _INTERLEAVED.get(child, set()) and _interleaves(module):
        return hidden(INTERLEAVED_QKV)
    return None


def _interleaves(module: nn.Module) -> bool:
    """Whether an attention module of the tables has query, key and value interleaved by heads."""
    if class_names(module) & {"FalconAttention", "GPTBigCodeAttention"}:
        return not getattr(module, "multi_query", False) or bool(getattr(module, "new_decoder_architecture", False))
    return not any(class_names(module) & classes for classes in _GROUPED.values())


def _gated(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    names = class_names(module)
    for child, classes in _GATED.items():
        if names & classes and (layer := _Layer.of(module, child)) is not None and layer.rows % 2 == 0:
            yield layer.weight, layer.role(FUSED_GATE, blocks=2)


def _conv1d(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    weight = module._parameters.get("weight")
    if weight is not None and _is_conv1d(module):
        yield weight, hidden(IN_OUT, MatrixView(transposed=True))


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`, a Linear with its weight stored as (in, out)."""
    shape = tuple(getattr(getattr(module, "weight", None), "shape", ()))
    return "Conv1D" in class_names(module) and len(shape) == 2 and shape[1] == getattr(module, "nf", None)


def _experts(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    names = class_names(module)
    known = names & _PLAIN_EXPERTS.keys()
    # What transformers' decorator `use_experts_implementation` sets.
    transposed = _PLAIN_EXPERTS[known.pop()] if known else getattr(module, "is_transposed", None)
    if not isinstance(transposed, bool):
        return
    halves = getattr(module, "is_concatenated", "GptOssExperts" not in names)
    for child in _EXPERT_WEIGHTS:
        weight = module._parameters.get(child)
        if weight is None or weight.ndim != 3:
            continue
        both = child == "gate_up_proj"
        reason = EXPERTS if not both else FUSED_EXPERTS if halves else INTERLEAVED_EXPERTS
        view = MatrixView(transposed=transposed, blocks=2 if both and halves else 1)
        yield weight, hidden(reason, view, "experts")


def _stacked_experts(name: str, module: nn.Module, per_head: bool) -> Iterator[_Finding]:  # noqa: ARG001
    """Find DBRX's experts, which lie one below the other in a matrix."""
    if "DbrxExpertGLU" not in class_names(module):
        return
    count = module.moe_num_experts
    assert isinstance(count, int)
    for child in ("w1", "v1", "w2"):
        # w2 is used as (in, out), so that the inputs of all experts are its rows.
        view = MatrixView(transposed=True, blocks=count, side="columns") if child == "w2" else MatrixView(blocks=count)
        yield module._parameters[child], hidden(EXPERTS, view, "experts")  # type: ignore[misc]


_FINDERS: tuple[Callable[[str, nn.Module, bool], Iterator[_Finding]], ...] = (
    _convolution,
    _multihead,
    _attention,
    _gated,
    _conv1d,
    _experts,
    _stacked_experts,
)


class _Layer:
    """A layer inside a module, with a matrix as its weight: a Linear, or transformers' Conv1D."""

    def __init__(self, weight: nn.Parameter, transposed: bool) -> None:
        self.weight = weight
        self.transposed = transposed
        self.rows, self.columns = reversed(weight.shape) if transposed else weight.shape

    @classmethod
    def of(cls, module: nn.Module, child: str) -> "_Layer | None":
        layer = getattr(module, child, None)
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Module) or not isinstance(weight, nn.Parameter) or weight.ndim != 2:
            return None
        return cls(weight, _is_conv1d(layer))

    def role(self, reason: str, blocks: int | tuple[int, ...], side: str = "rows") -> Role:
        return hidden(reason, MatrixView(transposed=self.transposed, blocks=blocks, side=side))


class _Heads:
    """How many heads an attention module has for queries, and for keys, and of which size, as far as it tells.

    Attributes:
        queries: 1 if it does not tell.
        keys: the number of heads of keys, and of values.
        size: of a head; None if it does not tell.
    """

    def __init__(self, module: nn.Module) -> None:
        config = getattr(module, "config", None)
        known = _first(module, "num_heads", "num_attention_heads", "n_heads", "n_head") or _first(
            config, "num_attention_heads"
        )
        self.queries: int = known or 1
        self.keys: int = (
            _first(module, "num_key_value_heads", "num_kv_heads", "kv_heads")
            or _first(config, "num_key_value_heads")
            or self.queries
        )
        size = _first(module, "head_dim", "head_size") or _first(config, "head_dim")
        width = _first(module, "hidden_size", "embed_dim", "n_embd") or _first(config, "hidden_size")
        if size is None and known and width and width % known == 0:
            size = width // known
        self.size: int | None = size if known else None

    @property
    def fused_rows(self) -> set[int]:
        """How many rows a weight of all heads can have: query, key and value, or key and value alone."""
        counts = (self.queries + 2 * self.keys, 3 * self.queries, 2 * self.keys)
        return {count * self.size for count in counts} if self.size else set()


def _first(owner: Any, *names: str) -> int | None:
    """Return the first of the attributes that is a number >= 1."""
    for name in names:
        try:
            value = getattr(owner, name, None)
        except RuntimeError:  # of a config in which the layers differ
            continue
        if isinstance(value, int) and value >= 1:
            return value
    return None
