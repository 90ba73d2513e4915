"""Text that a trained model writes."""

import torch
from torch import Tensor
from torch.nn.functional import softmax
from transformers import LlamaForCausalLM

TEMPERATURE = 0.8  # below 1: fewer odd tokens from a small model


@torch.no_grad()
def generate(model: LlamaForCausalLM, prompt: Tensor, tokens: int, seed: int) -> list[int]:
    """Continue a prompt; global random state is not touched. All ranks that share the model call it together.

    Args:
        model: On any device.
        prompt: int64, (length,); at least one token.
        tokens: Number to generate; prompt and these fit into the model's context.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.device
    model.eval()  # activation checkpointing in training mode would leave out the cache
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
