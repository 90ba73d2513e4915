"""Let a trained model write text."""

import torch
from torch import Tensor
from torch.nn.functional import softmax
from transformers import LlamaForCausalLM

TEMPERATURE = 0.8  # below 1, a small model chooses fewer unlikely tokens


@torch.no_grad()
def generate(model: LlamaForCausalLM, prompt: Tensor, tokens: int, seed: int) -> list[int]:
    """Continue a prompt. All ranks that share the model call it together. Global random state does not change.

    Args:
        model: on any device.
        prompt: int64, (length,), with at least one token.
        tokens: number of tokens to generate. Together with the prompt they must fit into the context.
        seed: seed of the random choices.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.device
    model.eval()  # in training mode, activation checkpointing would switch the cache off
    generated: list[int] = []
    output = model(input_ids=prompt[None].to(device), use_cache=True)
    while True:
        chances = softmax(output.logits[0, -1].float().cpu() / TEMPERATURE, dim=-1)
        token = torch.multinomial(chances, 1, generator=generator)
        generated.append(int(token))
        if len(generated) == tokens:
            model.train()
            return generated
        output = model(input_ids=token[None].to(device), past_key_values=output.past_key_values, use_cache=True)
