"""Adapters on tiny models of transformers, by PEFT itself."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from orthon import Dion, Dion3, Muon, explain, param_groups

peft = pytest.importorskip("peft")

pytestmark = [
    # PEFT asks transformers for an attribute by its older name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer:UserWarning"),
]

MAKERS = [Dion, Muon, Dion3]
RANK = 4
LORA, EMBEDDINGS, HEAD, NORMS = "LoRA factors", "embeddings", "output head", "norms and biases"


def config(**options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=3,
        pad_token_id=0, **options,
    )  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2)
    )


def llama(**options: Any) -> nn.Module:
    return LlamaForCausalLM(config(**options))


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, **options))


def found(model: nn.Module, **options: Any) -> dict[str, str]:
    """Return the groups of the trained parameters, under short names."""
    groups = param_groups(model, **options)
    rules = {name: group["name"] for group in groups for name, _ in group["params"]}
    assert len(rules) == sum(param.requires_grad for param in model.parameters())
    assert all(dict(model.named_parameters())[name].requires_grad for name in rules)
    assert all((g["algorithm"] == "dion") == ("LoRA" in g["name"] or "matrices" in g["name"]) for g in groups)
    short = {}
    for name, group in rules.items():
        parts = name.removeprefix("base_model.model.").split(".")
        short[".".join(part for part in parts if part not in ("model", "layers", "0", "self_attn", "default"))] = group
    return short


def factors(*layers: str) -> dict[str, str]:
    return {f"{layer}.lora_{factor}.weight": LORA for layer in layers for factor in "AB"}


CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "head and embedding saved": (
        {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {
            **factors("q_proj", "mlp.down_proj"),
            "lm_head.modules_to_save.weight": HEAD,
            "embed_tokens.modules_to_save.weight": EMBEDDINGS,
        },
    ),
    "norms and a matrix saved": (
        {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "up_proj"]},
        {
            **factors("q_proj"),
            "input_layernorm.modules_to_save.weight": NORMS,
            "mlp.up_proj.modules_to_save.weight": "hidden matrices",
        },
    ),
    "embedding adapted": (
        {"target_modules": ["v_proj", "embed_tokens"]},
        {
            **factors("v_proj"),
            "embed_tokens.lora_embedding_A": EMBEDDINGS,
            "embed_tokens.lora_embedding_B": LORA,
        },
    ),
    "new tokens": (
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
        {**factors("q_proj"), "embed_tokens.token_adapter.trainable_tokens_delta": EMBEDDINGS},
    ),
    "dora": (
        {"target_modules": ["o_proj"], "use_dora": True, "use_rslora": True},
        {**factors("o_proj"), "o_proj.lora_magnitude_vector.weight": NORMS},
    ),
    "bias of lora": (
        {"target_modules": ["o_proj"], "lora_bias": True},
        {**factors("o_proj"), "o_proj.lora_B.bias": NORMS},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_lora(case: str) -> None:
    options, expected = CASES[case]
    model = adapted(llama(), **options)
    assert found(model) == expected
    train(model)


def test_new_tokens_of_tied_weights_are_one_parameter() -> None:
    model = adapted(llama(tie_word_embeddings=True), target_modules=["q_proj"], trainable_token_indices=[1, 2])
    assert found(model) == CASES["new tokens"][1]
    train(model)


def test_the_head_of_a_classifier() -> None:
    model = adapted(LlamaForSequenceClassification(config()), target_modules=["q_proj"], task_type="SEQ_CLS")
    assert found(model) == {**factors("q_proj"), "score.modules_to_save.weight": HEAD}
    train(model, labels=torch.tensor([1]))


def test_the_adapter_that_is_active_is_trained() -> None:
    model = adapted(LlamaForSequenceClassification(config()), target_modules=["q_proj"], task_type="SEQ_CLS")
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="SEQ_CLS"))
    model.set_adapter("second")
    assert set(found(model)) == {
        "v_proj.lora_A.second.weight", "v_proj.lora_B.second.weight", "score.modules_to_save.second.weight"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "layers", "options"),
    [(gpt2, ["c_attn", "c_fc"], {}), (gpt2, ["c_attn"], {"per_head": True}), (llama, ["q_proj"], {"per_head": True})],
)
def test_a_saved_layer_is_read_as_the_layer_itself(make: Any, layers: list[str], options: dict[str, Any]) -> None:
    """Also where the module around it tells how: query, key and value in one weight, and attention heads."""
    plain = {row.parameter: (row.matrices, row.reason) for row in explain(Dion.for_model(make(), **options)).rows}
    other = "c_proj" if make is gpt2 else "down_proj"
    model = adapted(make(), target_modules=[other], modules_to_save=layers, fan_in_fan_out=make is gpt2)
    rows = explain(Dion.for_model(model, **options)).rows
    saved = [row for row in rows if ".modules_to_save." in row.parameter and row.parameter.endswith("weight")]
    assert len(saved) == len(layers)
    for row in saved:
        name = row.parameter.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        assert (row.matrices, row.reason) == plain[name]
        assert row.matrices


OTHERS: dict[str, tuple[Any, set[str]]] = {
    "oft": (lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"]), {"rotations"}),
    "tokens": (lambda: peft.TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"]), {EMBEDDINGS}),
    "ia3": (lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {NORMS}),
    "vera": (lambda: peft.VeraConfig(r=RANK, target_modules=["q_proj"]), {NORMS}),
    "prompt": (lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), {EMBEDDINGS}),
    "adalora": (
        lambda: peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=10), {LORA, NORMS}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_adapters(case: str) -> None:
    make, groups = OTHERS[case]
    model = peft.get_peft_model(llama(), make())
    assert set(found(model).values()) == groups
    if LORA in groups:
        Dion.for_model(model)
        return
    with pytest.warns(UserWarning, match="none of the . parameters of Peft.* goes to 'dion'"):
        Dion.for_model(model)


@pytest.mark.parametrize("make", MAKERS)
def test_a_saved_state_goes_on_with_the_same_steps(make: Any) -> None:
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "trainable_token_indices": [1]}
    model = adapted(llama(), **options)
    optimizer = make.for_model(model)
    train(model, optimizer)
    saved = copy.deepcopy((peft.get_peft_model_state_dict(model), optimizer.state_dict()))
    train(model, optimizer)
    again = adapted(llama(), **options)
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    frozen = {name: value for name, value in model.state_dict().items() if name not in trained}
    again.load_state_dict(frozen, strict=False)
    peft.set_peft_model_state_dict(again, saved[0])
    loaded = make.for_model(again)
    loaded.load_state_dict(saved[1])
    train(again, loaded)
    for (name, param), right in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(param, right), name


def test_an_optimizer_made_before_says_so() -> None:
    model = llama()
    optimizer = Dion.for_model(model)
    wrapped = adapted(model, target_modules=["q_proj"])
    wrapped(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    with pytest.warns(UserWarning, match="no parameter has a gradient.*PEFT"):
        optimizer.step()


def train(model: nn.Module, optimizer: Any = None, labels: torch.Tensor | None = None) -> None:
    """Take two steps, which move all that is trained and nothing else."""
    optimizer = Dion.for_model(model) if optimizer is None else optimizer
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    tokens = torch.arange(8)[None]
    for _ in range(2):  # B is zero at first, and A gets no gradient
        model(input_ids=tokens, labels=tokens if labels is None else labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) != param.requires_grad, name
