"""Which views the modules of torch and transformers get, and that they cut where the modules themselves do."""

import importlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import (
    BloomConfig,
    DbrxConfig,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    ModernBertConfig,
    NemotronHConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    ViTConfig,
    ViTModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from orthon import param_groups
from orthon.sharding.matrix_view import MatrixView
from tests.test_matrix_view import matrices

D, HEADS, KV, INNER, E = 32, 4, 2, 48, 4
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": D, "intermediate_size": INNER, "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": KV}
MOE: dict[str, Any] = {**GROUPED, "num_experts": E, "moe_intermediate_size": INNER}
SCALE = {"initializer_range": 0.5}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    config = deepcopy(config)
    config._experts_implementation = "eager"
    name = type(config).__name__.removesuffix("Config").removesuffix("Text")
    suffix = "ForMaskedLM" if name == "ModernBert" else "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    return getattr(transformers, f"{name}{suffix}")(config).eval()


def options_of(model: nn.Module, **kwargs: Any) -> dict[str, dict[str, Any]]:
    """Return the group of each parameter, after checking that its view can read it."""
    found = {}
    for group in param_groups(model, **kwargs):
        for name, param in group["params"]:
            found[name] = group
            if "view" in group:
                assert group["algorithm"] == "dion"
                reading = group["view"].read(param.shape)
                assert 1 not in reading.matrix(0)
    return found


def views(model: nn.Module, **kwargs: Any) -> dict[str, MatrixView]:
    """Return the views by the parameters' names, without the first layer's name in front."""
    found = {name: group["view"] for name, group in options_of(model, **kwargs).items() if "view" in group}
    return {name.split(".0.", 1)[-1]: view for name, view in found.items()}


class Convs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.multiplied = nn.Conv2d(8, 16, 3, groups=8)
        self.pointwise = nn.Conv1d(8, 12, 1)
        self.volume = nn.Conv3d(8, 4, 3)
        self.down = nn.Conv2d(8, 16, 2, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up_grouped = nn.ConvTranspose1d(16, 8, 3, groups=4)
        self.up_depthwise = nn.ConvTranspose1d(8, 8, 3, groups=8)
        self.up_volume = nn.ConvTranspose3d(8, 4, 3)
        self.mask = nn.Conv2d(8, 1, 3)
        self.fade = nn.Conv1d(1, 8, 1)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(16, 8, 2, stride=2)})
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Conv2d(8, 5, 1)


def test_convolutions() -> None:
    groups = options_of(Convs())
    conv = {"kind": "convolution"}
    found = {
        name.removesuffix(".weight"): g.get("view", g["name"].rstrip(" 0123456789"))
        for name, g in groups.items()
        if "weight" in name
    }
    assert found == {
        "stem": MatrixView(**conv),
        "grouped": MatrixView(**conv, blocks=2),
        "depthwise": "other weights",
        "multiplied": "other weights",
        "pointwise": MatrixView(**conv),
        "volume": MatrixView(**conv),
        "down": MatrixView(**conv),
        "up": MatrixView(**conv, transposed=True),
        "up_grouped": MatrixView(**conv, transposed=True, blocks=4),
        "up_depthwise": "other weights",
        "up_volume": MatrixView(**conv, transposed=True),
        "mask": "one-line matrices",
        "fade": "one-line matrices",
        "patch_embed.proj": "patch embeddings",
        "patches": "patch embeddings",
        "head": "output head",
    }
    assert groups["grouped.weight"]["name"] == "convolutions 2"
    assert groups["grouped.weight"]["reason"].endswith("; MatrixView(kind='convolution', blocks=2)")
    assert groups["depthwise.weight"]["reason"].startswith("depthwise")
    assert groups["patches.weight"]["reason"].startswith("patch embedding")
    assert {name for name, g in groups.items() if g is groups["stem.weight"]} == {
        f"{name}.weight" for name in ("stem", "pointwise", "volume", "down")
    }
    assert all(groups[name]["algorithm"] == "adamw" for name in ("depthwise.weight", "patches.weight", "head.weight"))


def test_patch_embedding_of_vit() -> None:
    config = ViTConfig(
        hidden_size=D, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=INNER, image_size=32
    )
    groups = options_of(ViTModel(config))
    assert groups["embeddings.patch_embeddings.projection.weight"]["name"] == "patch embeddings"
    assert not any("view" in group for group in groups.values())


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_multihead_attention(sizes: dict[str, int]) -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 4, **sizes)})
    whole = {} if sizes else {"a.in_proj_weight": MatrixView(blocks=3)}
    assert views(model) == whole
    parts = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    heads = {f"a.{p}": MatrixView(blocks=4) for p in parts} if sizes else {"a.in_proj_weight": MatrixView(blocks=12)}
    assert views(model, per_head=True) == heads | {"a.out_proj.weight": MatrixView(blocks=4, side="columns")}
    if not sizes:
        x = torch.randn(5, 1, 8)
        with torch.no_grad():
            matrices(model["a"].in_proj_weight, MatrixView(blocks=3))[2][0].zero_()
            assert not model["a"](x, x, x)[0].any()  # without values


QKV3 = MatrixView(blocks=3)
CONV1D = MatrixView(transposed=True)
GATED = {"experts.gate_up_proj": MatrixView(blocks=2), "experts.down_proj": MatrixView()}
SPARSE = {f"mlp.{name}": view for name, view in GATED.items()}

MODELS: dict[str, tuple[PreTrainedConfig, dict[str, MatrixView]]] = {
    "gpt2": (
        GPT2Config(**SMALL, **SCALE),
        {
            "attn.c_attn.weight": MatrixView(transposed=True, blocks=3),
            "attn.c_proj.weight": CONV1D,
            "mlp.c_fc.weight": CONV1D,
            "mlp.c_proj.weight": CONV1D,
        },
    ),
    "phi3": (
        Phi3Config(**GROUPED, **SCALE),
        {"self_attn.qkv_proj.weight": MatrixView(blocks=(32, 16, 16)), "mlp.gate_up_proj.weight": MatrixView(blocks=2)},
    ),
    "phi3 of equal sizes": (
        Phi3Config(**SMALL, **SCALE),
        {"self_attn.qkv_proj.weight": QKV3, "mlp.gate_up_proj.weight": MatrixView(blocks=2)},
    ),
    "modernbert": (
        ModernBertConfig(**SMALL, cls_token_id=0, sep_token_id=0),
        {"attn.Wqkv.weight": QKV3, "mlp.Wi.weight": MatrixView(blocks=2)},
    ),
    "bigcode, one key": (
        GPTBigCodeConfig(**SMALL, multi_query=True, **SCALE), {"attn.c_attn.weight": MatrixView(blocks=(32, 8, 8))}
    ),
    "bigcode, interleaved": (GPTBigCodeConfig(**SMALL, multi_query=False, **SCALE), {}),
    "falcon, one key": (
        FalconConfig(**SMALL, multi_query=True, new_decoder_architecture=False, **SCALE),
        {"self_attention.query_key_value.weight": MatrixView(blocks=(32, 8, 8))},
    ),
    "falcon, interleaved": (FalconConfig(**SMALL, multi_query=False, new_decoder_architecture=False, **SCALE), {}),
    "falcon, new": (FalconConfig(**SMALL, num_kv_heads=KV, new_decoder_architecture=True, **SCALE), {}),
    "neox": (GPTNeoXConfig(**SMALL, **SCALE), {}),
    "bloom": (BloomConfig(vocab_size=96, hidden_size=D, n_layer=1, n_head=HEADS, **SCALE), {}),
    "llama": (LlamaConfig(**GROUPED), {}),
    "opt": (OPTConfig(**SMALL, ffn_dim=INNER, word_embed_proj_dim=D), {}),
    "mixtral": (MixtralConfig(**GROUPED, num_local_experts=E), SPARSE),
    "qwen2 moe": (Qwen2MoeConfig(**MOE, shared_expert_intermediate_size=INNER), SPARSE),
    "qwen3 moe": (Qwen3MoeConfig(**MOE, head_dim=8), SPARSE),
    "olmoe": (OlmoeConfig(**GROUPED, num_experts=E), SPARSE),
    "deepseek": (
        DeepseekV3Config(
            **GROUPED, n_routed_experts=E, num_experts_per_tok=2, moe_intermediate_size=INNER, first_k_dense_replace=0,
            n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
            v_head_dim=8,
        ),
        SPARSE,
    ),
    "gpt-oss": (
        GptOssConfig(**GROUPED, num_local_experts=E, head_dim=8),
        {"mlp.experts.gate_up_proj": CONV1D, "mlp.experts.down_proj": CONV1D},
    ),
    "llama4": (
        Llama4TextConfig(**GROUPED, intermediate_size_mlp=INNER, num_local_experts=E, head_dim=8),
        {
            "feed_forward.experts.gate_up_proj": MatrixView(transposed=True, blocks=2),
            "feed_forward.experts.down_proj": CONV1D,
        },
    ),
    "dbrx": (
        DbrxConfig(
            d_model=D, n_heads=HEADS, n_layers=1, vocab_size=96, max_seq_len=16,
            attn_config={"kv_n_heads": KV, "rope_theta": 1e4, "clip_qkv": 8.0},
            ffn_config={"ffn_hidden_size": INNER, "moe_num_experts": E, "moe_top_k": 2},
        ),
        {
            "norm_attn_norm.attn.Wqkv.weight": MatrixView(blocks=(32, 16, 16)),
            "ffn.experts.mlp.w1": MatrixView(blocks=E),
            "ffn.experts.mlp.v1": MatrixView(blocks=E),
            "ffn.experts.mlp.w2": MatrixView(transposed=True, blocks=E, side="columns"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    config, expected = MODELS[name]
    model = build(config)
    assert views(model) == expected
    groups = options_of(model, per_head=True)
    # Nothing but attention changes.
    assert {k: v for k, v in views(model, per_head=True).items() if "attn" not in k and "attention" not in k} == {
        k: v for k, v in expected.items() if "attn" not in k and "attention" not in k
    }
    assert groups.keys() == options_of(model).keys()


def test_reasons() -> None:
    neox = options_of(build(MODELS["neox"][0]))["gpt_neox.layers.0.attention.query_key_value.weight"]
    assert (neox["algorithm"], neox["name"]) == ("dion", "hidden matrices")
    assert "interleaved" in neox["reason"]
    oss = options_of(build(MODELS["gpt-oss"][0]))
    assert "interleaved" in oss["model.layers.0.mlp.experts.gate_up_proj"]["reason"]
    assert oss["model.layers.0.mlp.experts.gate_up_proj_bias"]["name"].startswith("norms and biases")
    mixtral = options_of(build(MODELS["mixtral"][0]))
    assert mixtral["model.layers.0.mlp.experts.down_proj"]["name"] == "experts 2"
    assert mixtral["model.layers.0.mlp.experts.down_proj"]["reason"].endswith("; MatrixView()")
    assert mixtral["model.layers.0.mlp.gate.weight"]["name"] == "routers"


def columns(blocks: int, *, transposed: bool = False) -> MatrixView:
    return MatrixView(blocks=blocks, side="columns", transposed=transposed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"q_proj": 4, "k_proj": 2, "v_proj": 2, "o_proj": columns(4)}),
        ("gpt-oss", {"q_proj": 4, "k_proj": 2, "v_proj": 2, "o_proj": columns(4)}),
        ("opt", {"q_proj": 4, "k_proj": 4, "v_proj": 4, "out_proj": columns(4)}),
        ("gpt2", {"c_attn": MatrixView(transposed=True, blocks=12), "c_proj": columns(4, transposed=True)}),
        ("phi3", {"qkv_proj": 8, "o_proj": columns(4)}),
        ("modernbert", {"Wqkv": 12, "Wo": columns(4)}),
        ("neox", {"query_key_value": 12, "dense": columns(4)}),
        ("bloom", {"query_key_value": 12, "dense": columns(4)}),
        ("bigcode, one key", {"c_attn": 6, "c_proj": columns(4)}),
        ("bigcode, interleaved", {"c_attn": 12, "c_proj": columns(4)}),
        ("falcon, one key", {"query_key_value": 6, "dense": columns(4)}),
        ("falcon, new", {"query_key_value": 8, "dense": columns(4)}),
        ("dbrx", {"Wqkv": 8, "out_proj": columns(4)}),
        ("deepseek", {}),  # its keys and values come out of one low-rank projection
    ],
)
def test_per_head(name: str, expected: dict[str, int | MatrixView]) -> None:
    found = views(build(MODELS[name][0]), per_head=True)
    attention = {key.split(".")[-2]: view for key, view in found.items() if "attn." in key or "attention." in key}
    assert attention == {k: MatrixView(blocks=v) if isinstance(v, int) else v for k, v in expected.items()}


def test_wrappers_and_subclasses_keep_views() -> None:
    model = build(MODELS["phi3"][0])
    usual = options_of(model, per_head=True)
    for module in model.modules():  # as fully_shard does
        module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})
    assert options_of(model, per_head=True) == usual
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    assert options_of(model, per_head=True).keys() == usual.keys()
    assert options_of(torch.compile(model, backend="eager"), per_head=True) == usual


def test_nanogpt() -> None:
    class CausalSelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)
            self.n_head, self.n_embd = 4, 32

    model = nn.ModuleDict({"attn": CausalSelfAttention()})
    assert views(model) == {"attn.c_attn.weight": QKV3}
    assert views(model, per_head=True) == {
        "attn.c_attn.weight": MatrixView(blocks=12),
        "attn.c_proj.weight": columns(4),
    }


def test_unknown_modules_are_left_alone() -> None:
    class Attention(nn.Module):
        """Names as in transformers, but neither a known class nor a number of heads."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv_proj = nn.Linear(8, 24)
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.out_proj = nn.Linear(8, 8)
            self.gate_up_proj = nn.Linear(8, 32)

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.ones(4, 32, 8))
            self.down_proj = nn.Parameter(torch.ones(4, 8, 16))

    groups = options_of(nn.ModuleDict({"attn": Attention(), "experts": Experts()}), per_head=True)
    assert not any("view" in group for group in groups.values())
    assert groups["attn.qkv_proj.weight"]["name"] == "hidden matrices"
    assert groups["experts.down_proj"]["algorithm"] == "adamw"


class GroupedExperts(nn.Module):
    """Experts as torchtitan 0.2.2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(E, INNER, D))
        self.w2 = nn.Parameter(torch.randn(E, D, INNER))
        self.w3 = nn.Parameter(torch.randn(E, INNER, D))


class GptOssGroupedExperts(nn.Module):
    """Those of its GPT-OSS, with gate and up in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp1_weight = nn.Parameter(torch.randn(E, 2 * INNER, D))
        self.mlp1_bias = nn.Parameter(torch.randn(E, 2 * INNER))
        self.mlp2_weight = nn.Parameter(torch.randn(E, D, INNER))
        self.mlp2_bias = nn.Parameter(torch.randn(E, D))


@pytest.mark.parametrize("make", [GroupedExperts, GptOssGroupedExperts])
def test_the_experts_of_torchtitan(make: type[nn.Module]) -> None:
    """tests/integrations/test_torchtitan_experts.py has the real ones."""
    model = nn.ModuleDict({"experts": make()})
    found = options_of(model)
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            assert found[name]["name"] == "norms and biases"
        else:
            assert (found[name]["algorithm"], found[name]["view"]) == ("dion", MatrixView())
            assert found[name]["view"].read(param.shape).matrix(0) == tuple(param.shape[1:])


def test_grouping_by_view() -> None:
    model = build(MODELS["llama"][0])
    groups = [group for group in param_groups(model, per_head=True) if group["algorithm"] == "dion"]
    found = {g["name"]: (str(g.get("view", "")), [name.split(".")[-2] for name, _ in g["params"]]) for g in groups}
    assert found == {
        "hidden matrices": ("MatrixView(blocks=4)", ["q_proj"]),
        "hidden matrices 2": ("MatrixView(blocks=2)", ["k_proj", "v_proj"]),
        "hidden matrices 3": ("MatrixView(blocks=4, side='columns')", ["o_proj"]),
        "hidden matrices 4": ("", ["gate_proj", "up_proj", "down_proj"]),
    }
    assert all(g["reason"].endswith(found[g["name"]][0]) for g in groups)


@pytest.fixture
def attention_inputs() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Return a list to which models with the attention "recorded" add their query, key and value."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        seen.append((q, k, v))
        return torch.zeros_like(q.transpose(1, 2)), None

    ALL_ATTENTION_FUNCTIONS.register("recorded", record)
    yield seen
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("recorded")


FUSED = {
    "gpt2": "attn.c_attn", "phi3": "qkv_proj", "phi3 of equal sizes": "qkv_proj", "modernbert": "Wqkv",
    "neox": "query_key_value", "bigcode, one key": "c_attn", "bigcode, interleaved": "c_attn", "dbrx": "Wqkv",
}  # fmt: skip


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_blocks_are_query_key_and_value(
    name: str, per_head: bool, attention_inputs: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    model = build(MODELS[name][0])
    model.config._attn_implementation = "recorded"
    ((full, group),) = (
        (n, g) for n, g in options_of(model, per_head=per_head).items() if n.endswith(f"{FUSED[name]}.weight")
    )
    if "view" not in group:
        assert "interleaved" in group["reason"]
        return
    weight = model.get_parameter(full)
    blocks = matrices(weight, group["view"])
    x = torch.arange(7)[None]
    model(x)
    usual = attention_inputs[-1]
    changed = []
    for (block,) in blocks:
        before = block.clone()
        block.zero_()
        model(x)
        block.copy_(before)
        parts = [
            (part, head)
            for part, (was, now) in enumerate(zip(usual, attention_inputs[-1], strict=True))
            for head in range(was.shape[1])
            if not torch.equal(was[:, head], now[:, head])
        ]
        assert all(not attention_inputs[-1][part][:, head].any() for part, head in parts)
        changed.append(parts)
    heads = [usual[part].shape[1] for part in range(3)]
    if per_head:  # each block is one head of one of them
        assert sorted(head for parts in changed for head in parts) == [
            (part, head) for part in range(3) for head in range(heads[part])
        ]
        assert {len(parts) for parts in changed} == {1}
    else:
        assert changed == [[(part, head) for head in range(heads[part])] for part in range(3)]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("name", ["bloom", "falcon, one key", "falcon, interleaved", "falcon, new"])
@torch.no_grad()
def test_blocks_where_the_module_splits_by_itself(name: str, per_head: bool) -> None:
    model = build(MODELS[name][0])
    ((full, group),) = (
        (n, g) for n, g in options_of(model, per_head=per_head).items() if n.endswith("query_key_value.weight")
    )
    if "view" not in group:
        assert "interleaved" in group["reason"]
        return
    attention = model.get_submodule(full.removesuffix(".query_key_value.weight"))
    split = attention._reshape if name == "bloom" else attention._split_heads
    x = torch.randn(1, 3, D)
    usual = split(attention.query_key_value(x))
    changed = []
    for (block,) in matrices(attention.query_key_value.weight, group["view"]):
        before = block.clone()
        block.zero_()
        parts = split(attention.query_key_value(x))
        block.copy_(before)
        changed += [part for part in range(3) if not torch.equal(parts[part], usual[part])]
    counts = {"falcon, one key": (4, 1, 1), "falcon, new": (4, 2, 2)}.get(name, (4, 4, 4)) if per_head else (1, 1, 1)
    assert sorted(changed) == [part for part in range(3) for _ in range(counts[part])]


@pytest.mark.parametrize("name", ["phi3", "modernbert"])
@torch.no_grad()
def test_blocks_are_gate_and_up(name: str) -> None:
    model = build(MODELS[name][0])
    for module in model.modules():
        if type(module).__name__.endswith("MLP"):
            mlp = module
    weight = mlp.gate_up_proj.weight if name == "phi3" else mlp.Wi.weight
    x = torch.randn(3, D)
    for (block,) in matrices(weight, MatrixView(blocks=2)):
        before = block.clone()
        assert mlp(x).any()
        block.zero_()
        assert not mlp(x).any()  # a product with zero; of halves that are mixed, half would stay
        block.copy_(before)


def square(config: type[PreTrainedConfig], **sizes: Any) -> PreTrainedConfig:
    """Return a config whose experts have as many intermediate features as others, so that no shape tells."""
    return config(**{**GROUPED, "intermediate_size": D, "moe_intermediate_size": D} | sizes)


EXPERTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: square(MixtralConfig, num_local_experts=E),
    "qwen3 moe": lambda: square(Qwen3MoeConfig, num_experts=E),
    "olmoe": lambda: square(OlmoeConfig, num_experts=E),
    "deepseek": lambda: square(DeepseekV3Config, n_routed_experts=E, n_group=1, topk_group=1, first_k_dense_replace=0),
    "gpt-oss": lambda: square(GptOssConfig, num_local_experts=E, head_dim=8),
    "llama4": lambda: square(Llama4TextConfig, num_local_experts=E, head_dim=8, intermediate_size_mlp=D),
    "nemotron": lambda: square(NemotronHConfig, n_routed_experts=E, layers_block_type=["moe"], head_dim=8),
}


@pytest.mark.parametrize("name", EXPERTS)
@torch.no_grad()
def test_matrices_are_what_the_experts_multiply_by(name: str) -> None:
    model = build(EXPERTS[name]())
    (experts,) = (m for m in model.modules() if type(m).__name__.endswith("Experts"))
    found = {n.split(".")[-1]: g["view"] for n, g in options_of(model).items() if ".experts." in n and "view" in g}
    for param in experts.parameters():
        param.copy_(torch.zeros_like(param) if param.ndim == 2 else torch.randn_like(param) / 4)
    parts = {n: matrices(experts.get_parameter(n), view) for n, view in found.items()}
    x = torch.randn(E, D)  # a token for each expert
    if name == "llama4":
        actual = experts(x)
    else:
        actual = experts(x, torch.arange(E)[:, None], torch.ones(E, E if name == "gpt-oss" else 1))

    for e in range(E):
        if name == "nemotron":
            inner = experts.act_fn(parts["up_proj"][0][e] @ x[e])
        elif name == "gpt-oss":
            inner = experts._apply_gate(parts["gate_up_proj"][0][e] @ x[e])
        else:
            gate, up = (part[e] @ x[e] for part in parts["gate_up_proj"])
            inner = experts.act_fn(gate) * up
        torch.testing.assert_close(parts["down_proj"][0][e] @ inner, actual[e], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["LongcatFlashExperts", "Step3p7Experts", "InklingSharedExperts", "AriaExperts"])
@torch.no_grad()
def test_experts_outside_the_common_form(name: str) -> None:
    family = {"Long": "longcat_flash", "Step": "step3p7", "Inkl": "inkling", "Aria": "aria"}[name[:4]]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    sizes = dict.fromkeys(["hidden_size", "intermediate_size", "expert_ffn_hidden_size", "moe_intermediate_size"], D)
    counts = dict.fromkeys(["n_routed_experts", "num_local_experts", "n_shared_experts", "moe_num_experts"], E)
    config = SimpleNamespace(**sizes, **counts, zero_expert_num=0, hidden_act="silu", _experts_implementation="eager")
    model = nn.ModuleDict({"experts": getattr(module, name)(config)})
    parts = {}
    for key, group in options_of(model).items():
        param = model.get_parameter(key)
        parts[key.split(".")[-1]] = matrices(param.copy_(torch.randn_like(param) / 4), group["view"])
    x = torch.randn(E, D)
    if name == "InklingSharedExperts":  # all of them get each token
        actual, gates, ups = model["experts"](x, torch.ones(E, E)), parts["gate_proj"][0], parts["up_proj"][0]
        used = [range(E)] * E
    else:
        chosen = torch.arange(E)
        weights = torch.tensor([1.0, 0.0]).expand(E, 2)  # the second is there because Longcat cannot do with one
        actual = model["experts"](x, torch.stack([chosen, chosen.roll(1)], dim=1), weights)
        gates, ups = parts["gate_up_proj"]
        used = [range(t, t + 1) for t in range(E)]
    for token, expected in zip(x, actual, strict=True):
        experts = used.pop(0)
        ours = [parts["down_proj"][0][e] @ (silu(gates[e] @ token) * (ups[e] @ token)) for e in experts]
        torch.testing.assert_close(sum(ours), expected, rtol=1e-4, atol=1e-4)
