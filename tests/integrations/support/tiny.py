"""A tiny LLaMA, its data, and a Trainer around it: without a network."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

VOCABULARY = 80  # another number than there are rows in any matrix inside
BATCH = 2


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def rows(count: int = 32) -> list[dict[str, torch.Tensor]]:
    """Return texts of 8 tokens that can be learned: each counts on from a random token."""
    first = torch.randint(VOCABULARY, (count, 1), generator=torch.Generator().manual_seed(1))
    tokens = (first + torch.arange(8)) % VOCABULARY
    return [{"input_ids": text, "labels": text} for text in tokens]


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 6,
        "per_device_train_batch_size": BATCH, "logging_steps": 1, "logging_nan_inf_filter": False, "seed": 3,
        "save_strategy": "no", "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**usual, **given})


def trainer(folder: Path, optimizer: Any, *, kind: type[Trainer] = Trainer, **given: Any) -> Trainer:
    """Return a Trainer for the tiny LLaMA, with an optimizer and the given arguments."""
    return kind(
        model=llama(),
        args=arguments(folder, **given),
        train_dataset=rows(),
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=optimizer,
    )


def logged(trainer: Trainer, key: str) -> list[float]:
    """Return what the Trainer has logged under a name, step by step."""
    return [entry[key] for entry in trainer.state.log_history if key in entry and "loss" in entry]
