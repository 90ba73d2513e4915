"""Orthon's optimizers in TRL's trainers: what PEFT adds is trained, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import orthon
from orthon.integrations import hf
from tests.integrations.support.tiny import VOCABULARY, llama, logged

# TRL and PEFT call transformers by older names.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing\\w*` is deprecated:FutureWarning")

MAKERS = [orthon.Dion, orthon.Muon, orthon.Dion3]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM", "lora_dropout": 0.0}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *map(str, range(3, VOCABULARY))])}
    tokens = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def texts(count: int = 32) -> list[str]:
    return [" ".join(str(first % 50 + k) for k in range(3, 11)) for first in range(0, 7 * count, 7)]


def arguments(config: Any, folder: Path, **given: Any) -> Any:
    usual: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 6,
        "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "dataloader_pin_memory": False,
        "bf16": False,
    }  # fmt: skip
    return config(**{**usual, **given})


def fine_tuning(folder: Path, optimizer: Any, *, lora: Any = LORA, **given: Any) -> SFTTrainer:
    model = llama()
    with torch.no_grad():  # so that the adapters alone can change what is frozen says
        model.lm_head.weight.mul_(20)
    return SFTTrainer(
        model=model,
        args=arguments(SFTConfig, folder, **given),
        train_dataset=Dataset.from_dict({"text": texts()}),
        processing_class=tokenizer(),
        peft_config=None if lora is None else LoraConfig(**lora),
        optimizer_cls_and_kwargs=optimizer,
    )


def moved(trainer: Any) -> set[str]:
    """Train, and return the names of the parameters that have changed."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_the_adapters_are_trained(make: Any, bf16: bool, tmp_path: Path) -> None:
    run = fine_tuning(tmp_path, hf(make, lr=0.02), bf16=bf16, max_steps=12)
    changed = moved(run)
    trained = {name for name, value in run.model.named_parameters() if value.requires_grad}
    assert changed == trained
    assert len(trained) == 2 * 2 * 3  # two factors for three layers in two blocks
    [group] = run.optimizer.param_groups
    assert (group["name"], group["algorithm"]) == ("LoRA factors", make.algorithm)
    losses = logged(run, "loss")
    assert losses[-1] < 0.9 * losses[0]
    assert logged(run, "learning_rate")[0] == 0.02


def test_what_is_saved_beside_the_adapters_goes_to_adamw(tmp_path: Path) -> None:
    run = fine_tuning(
        tmp_path, hf(orthon.Dion, lr=0.02, scalar_lr=0.001), lora={**LORA, "modules_to_save": ["lm_head"]}
    )
    changed = moved(run)
    assert changed == {name for name, value in run.model.named_parameters() if value.requires_grad}
    kinds = [(group["name"], group["algorithm"]) for group in run.optimizer.param_groups]
    assert kinds == [("LoRA factors", "dion"), ("output head", "adamw")]
    for rate, group in zip((0.02, 0.001), run.optimizer.param_groups, strict=True):
        assert group["initial_lr"] == rate
    assert logged(run, "learning_rate")[0] == 0.02


def test_all_weights_are_trained_without_adapters(tmp_path: Path) -> None:
    run = fine_tuning(tmp_path, hf(orthon.Dion, lr=0.01), lora=None)
    assert moved(run) == {name for name, _ in run.model.named_parameters()}
    assert run.optimizer.param_groups[0]["name"] == "hidden matrices"


def test_a_resumed_run_has_the_same_losses(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = fine_tuning(tmp_path, hf(orthon.Dion, lr=0.02), **options)
    whole.train()
    again = fine_tuning(tmp_path, hf(orthon.Dion, lr=0.02), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(again, "loss") == logged(whole, "loss")


def test_a_trainer_that_does_not_take_it_takes_the_attribute(tmp_path: Path) -> None:
    run = DPOTrainer(
        model=llama(),
        args=arguments(DPOConfig, tmp_path, max_steps=3),
        train_dataset=Dataset.from_dict({"prompt": ["3 4"] * 16, "chosen": [" 5 6"] * 16, "rejected": [" 9 3"] * 16}),
        processing_class=tokenizer(),
        peft_config=LoraConfig(**LORA),
    )
    run.optimizer_cls_and_kwargs = hf(orthon.Dion, lr=0.02)
    assert moved(run) == {name for name, value in run.model.named_parameters() if value.requires_grad}
    assert logged(run, "learning_rate")[0] == run.optimizer.param_groups[0]["initial_lr"] == 0.02


def test_the_default_learning_rate_of_trl_is_not_taken_for_a_persons_choice(tmp_path: Path) -> None:
    run = fine_tuning(tmp_path, hf(orthon.Dion, lr=0.02))
    assert run.args.learning_rate == SFTConfig.learning_rate != 5e-5
    assert run.create_optimizer().param_groups[0]["lr"] == 0.02
