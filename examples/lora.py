"""Fine-tuning with LoRA: a small LLaMA that counts by one learns to count by two, by adapters of PEFT alone.

Make the optimizer after the adapters. It then has the adapters, and nothing that is frozen.

Run: python examples/lora.py
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import orthon

NUMBERS, BATCH, LENGTH = 50, 16, 16


def counted(by: int) -> Tensor:
    """Return texts that count on from a random number."""
    return (torch.randint(NUMBERS, (BATCH, 1)) + by * torch.arange(LENGTH)) % NUMBERS


def train(model: nn.Module, optimizer: orthon.Dion, by: int, steps: int) -> None:
    for step in range(1, steps + 1):
        tokens = counted(by)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 1 or step % 20 == 0:
            print(f"by {by}, step {step}: loss {loss.item():.3f}")


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=NUMBERS,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=1,
    eos_token_id=2,
)
base = LlamaForCausalLM(config)
train(base, orthon.Dion.for_model(base, lr=0.02), by=1, steps=60)

model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
optimizer = orthon.Dion.for_model(model, lr=0.05)
for group in optimizer.param_groups:
    print(f"{group['name']}: {len(group['params'])} tensors, {group['algorithm']} at lr {group['lr']}")
train(model, optimizer, by=2, steps=100)
