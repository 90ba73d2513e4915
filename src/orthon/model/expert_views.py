"""Mixtures of experts: weights with one matrix, or two, for each expert."""

from collections.abc import Iterator

from torch import nn

from orthon.model.layers import Finding
from orthon.model.roles import hidden
from orthon.model.stored import stored
from orthon.model.wrappers import class_names
from orthon.sharding.matrix_view import MatrixView

_EXPERTS = "experts: a matrix each"
_FUSED_EXPERTS = "experts with gate and up in one weight: two matrices each"
_INTERLEAVED_EXPERTS = "experts with gate and up interleaved: a matrix each for both"

# Whether experts are stored as (expert, in, out), for classes that do not tell it by an attribute.
_PLAIN_EXPERTS = {
    "Llama4TextExperts": True,
    "LongcatFlashExperts": False,
    "InklingSharedExperts": False,
    "Step3p7Experts": False,
}
# Weights of torchtitan's experts, stored as (expert, out, in), in its version 0.2.2. Those of its GPT-OSS have gate and
# up in turns.
_OF_TORCHTITAN = {
    "GroupedExperts": {"w1": _EXPERTS, "w2": _EXPERTS, "w3": _EXPERTS},
    "GptOssGroupedExperts": {"mlp1_weight": _INTERLEAVED_EXPERTS, "mlp2_weight": _EXPERTS},
}
_EXPERT_WEIGHTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def experts(module: nn.Module) -> Iterator[Finding]:
    """Find the experts of transformers' modules, which lie in tensors of three dims, the experts first."""
    names = class_names(module)
    known = names & _PLAIN_EXPERTS.keys()
    # The decorator `use_experts_implementation` of transformers sets this attribute.
    transposed = _PLAIN_EXPERTS[known.pop()] if known else getattr(module, "is_transposed", None)
    if not isinstance(transposed, bool):
        return
    halves = getattr(module, "is_concatenated", "GptOssExperts" not in names)
    for child in _EXPERT_WEIGHTS:
        weight = stored(module, child)
        if weight is None or weight.ndim != 3:
            continue
        both = child == "gate_up_proj"
        reason = _EXPERTS if not both else _FUSED_EXPERTS if halves else _INTERLEAVED_EXPERTS
        view = MatrixView(transposed=transposed, blocks=2 if both and halves else 1)
        yield weight, hidden(reason, view, "experts")


def torchtitans_experts(module: nn.Module) -> Iterator[Finding]:
    """Find the experts of torchtitan's modules, which lie in tensors of three dims, the experts first."""
    for name in class_names(module) & _OF_TORCHTITAN.keys():
        for child, reason in _OF_TORCHTITAN[name].items():
            weight = stored(module, child)
            if weight is not None and weight.ndim == 3:
                yield weight, hidden(reason, MatrixView(), "experts")


def stacked_experts(module: nn.Module) -> Iterator[Finding]:
    """Find DBRX's experts, which lie one below the other in a matrix."""
    if "DbrxExpertGLU" not in class_names(module):
        return
    count = module.moe_num_experts
    assert isinstance(count, int)
    for child in ("w1", "v1", "w2"):
        # w2 is used as (in, out): its rows are the inputs of all experts.
        view = MatrixView(transposed=True, blocks=count, side="columns") if child == "w2" else MatrixView(blocks=count)
        yield module._parameters[child], hidden(_EXPERTS, view, "experts")  # type: ignore[misc]
