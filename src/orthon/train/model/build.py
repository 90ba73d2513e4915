"""Build the model: transformers' LLaMA with new weights."""

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orthon.train.settings.model import Shape


def build_model(shape: Shape, vocab_size: int, seed: int) -> LlamaForCausalLM:
    """Return a LLaMA whose weights depend on its shape, the vocabulary size and `seed` alone.

    Args:
        shape: widths, heads and layers.
        vocab_size: number of different tokens. Embedding and output head are not tied.
        seed: seeds torch's global generator.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(shape, vocab_size))
    # As in GPT-2: each layer adds to the residual stream twice, and the sum should not grow with the depth.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.div_(math.sqrt(2 * shape.layers))
            layer.mlp.down_proj.weight.div_(math.sqrt(2 * shape.layers))
    return model


def llama_config(shape: Shape, vocab_size: int) -> LlamaConfig:
    """Return what transformers makes a LLaMA of. Embedding and output head are not tied.

    Args:
        shape: widths, heads and layers.
        vocab_size: number of different tokens.
    """
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        # "SmallInit" (arXiv 1910.05895): it falls with the width, and is 0.023 at the 768 of GPT-2.
        initializer_range=math.sqrt(2 / (5 * shape.hidden_size)),
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
