"""The Trainer of transformers: a small LLaMA learns Python's source, byte by byte, with the Trainer's schedule.

`lr` is the learning rate of the matrices, and the one that is logged. Other settings of `TrainingArguments` count.

Run: python examples/hf_trainer.py
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

import orthon

LENGTH = 64


class Pieces(Dataset[dict[str, torch.Tensor]]):
    """The text of one of Python's modules in pieces."""

    def __init__(self) -> None:
        text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
        self.pieces = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[index], "labels": self.pieces[index]}


config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    disable_tqdm=True,
    max_steps=80,
    warmup_steps=5,
    per_device_train_batch_size=16,
    logging_steps=20,
    use_cpu=True,
    report_to="none",
)
trainer = Trainer(
    model=LlamaForCausalLM(config),
    args=arguments,
    train_dataset=Pieces(),
    data_collator=default_data_collator,
    optimizer_cls_and_kwargs=orthon.integrations.hf(orthon.Dion, lr=0.02),
)
trainer.train()
print(
    *(f"step {each['step']}: loss {each['loss']:.3f}" for each in trainer.state.log_history if "loss" in each), sep="\n"
)
