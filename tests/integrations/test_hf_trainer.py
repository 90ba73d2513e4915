"""Orthon's optimizers in the Trainer of transformers, in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    default_data_collator,
    get_scheduler,
)

import orthon
from orthon.integrations import hf
from orthon.optimizers.by_name import class_of
from orthon.optimizers.wrapped import unwrapped
from tests.integrations.support.tiny import BATCH, arguments, llama, logged, rows, trainer

MAKERS = [orthon.Dion, orthon.Muon, orthon.NorMuon, orthon.Dion2, orthon.Dion3]


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    for (name, value), right in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, right), name


def by_hand(make: Any, *, steps: int, clip: float, accumulated: int, bf16: bool) -> nn.Module:
    """Train as the Trainer should, in a loop of our own."""
    model = llama()
    optimizer = make.for_model(model, lr=0.02, weight_decay=0.1, betas=(0.9, 0.999))
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=steps)
    data = rows()
    for step in range(steps):
        for part in range(accumulated):
            start = (step * accumulated + part) * BATCH
            tokens = torch.stack([row["input_ids"] for row in data[start : start + BATCH]])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(input_ids=tokens, labels=tokens).loss
            (loss / accumulated).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        model.zero_grad()
    return model


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("make", MAKERS)
def test_it_does_the_steps_of_a_loop_by_hand(make: Any, accumulated: int, bf16: bool, tmp_path: Path) -> None:
    run = trainer(
        tmp_path, hf(make, lr=0.02), max_steps=4, weight_decay=0.1, max_grad_norm=0.5, warmup_steps=2,
        gradient_accumulation_steps=accumulated, bf16=bf16,
    )  # fmt: skip
    run.train()
    expected = by_hand(make, steps=4, clip=0.5, accumulated=accumulated, bf16=bf16)
    for (name, value), right in zip(run.model.state_dict().items(), expected.state_dict().values(), strict=True):
        # The Trainer divides a sum by the number of tokens, where we take means of means.
        torch.testing.assert_close(value, right, rtol=1e-5, atol=1e-5, msg=name)


class Rates(TrainerCallback):
    """Keeps the learning rates of all groups, at the end of each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})


SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"warmup_steps": 2},
    "cosine": {},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 0.002}},
    "polynomial": {},
    "warmup_stable_decay": {"warmup_steps": 1, "lr_scheduler_kwargs": {"num_decay_steps": 3}},
    "inverse_sqrt": {"warmup_steps": 2},
    "constant_with_warmup": {"warmup_steps": 3},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_logged_rate_is_that_of_the_matrices_and_all_rates_move_together(schedule: str, tmp_path: Path) -> None:
    run = trainer(
        tmp_path, hf(orthon.Dion, lr=0.02, scalar_lr=0.005), lr_scheduler_type=schedule, **SCHEDULES[schedule]
    )
    rates = Rates()
    run.add_callback(rates)
    run.train()
    assert logged(run, "learning_rate") == [each["hidden matrices"] for each in rates.seen]
    assert len({rate for each in rates.seen for rate in each.values()}) > 2
    for each in rates.seen:
        assert set(each) == {"hidden matrices", "embeddings", "output head", "norms and biases"}
        for name, rate in each.items():
            assert name == "hidden matrices" or rate == pytest.approx(each["hidden matrices"] / 4, rel=1e-12)
    assert [group["initial_lr"] for group in run.optimizer.param_groups] == [0.02, 0.005, 0.005, 0.005]


@pytest.mark.parametrize("make", MAKERS)
def test_a_resumed_run_has_the_same_losses(make: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    whole = trainer(tmp_path, hf(make, lr=0.02), **options)
    whole.train()
    again = trainer(tmp_path, hf(make, lr=0.02), **options)
    with torch.no_grad():
        next(again.model.parameters()).zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(again, "loss") == logged(whole, "loss")
    assert logged(again, "learning_rate") == logged(whole, "learning_rate")
    assert_same(again.model, whole.model)
    assert logged(whole, "loss")[-1] < logged(whole, "loss")[0]


def made(tmp_path: Path, options: dict[str, Any], make: Any = orthon.Dion, **given: Any) -> Any:
    return trainer(tmp_path, hf(make, **options), **given).create_optimizer()


ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}

# What `hf` gets, what TrainingArguments gets, and the options of the matrices and of the output head.
USED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"lr": 0.01}, {}, {"lr": 0.01, "weight_decay": 0.0}, {"lr": 0.003, "weight_decay": 0.0, **ADAM}),
    ({}, {"learning_rate": 0.03}, {"lr": 0.03}, {"lr": 0.003}),
    ({"lr": 0.03}, {"learning_rate": 0.03}, {"lr": 0.03}, {}),
    ({"lr": 0.01, "scalar_lr": 0.002}, {}, {"lr": 0.01}, {"lr": 0.002}),
    ({"lr": 0.01}, {"weight_decay": 0.2}, {"weight_decay": 0.2}, {"weight_decay": 0.2}),
    ({"lr": 0.01, "weight_decay": 0.2}, {}, {"weight_decay": 0.2}, {"weight_decay": 0.2}),
    ({"lr": 0.01}, {"adam_beta1": 0.8}, {}, {"betas": (0.8, 0.999), "eps": 1e-8}),
    ({"lr": 0.01}, {"adam_epsilon": 1e-6}, {}, {"eps": 1e-6}),
    ({"lr": 0.01, "betas": (0.9, 0.95)}, {}, {}, {"betas": (0.9, 0.95)}),
    ({"lr": 0.01, "betas": [0.8, 0.95]}, {"adam_beta1": 0.8, "adam_beta2": 0.95}, {}, {"betas": (0.8, 0.95)}),
    ({"lr": 0.01, "scalar_algorithm": "lion"}, {}, {}, {"lr": 0.0003, "betas": (0.9, 0.95)}),
    ({"lr": 0.01, "rank_fraction": 0.5, "overrides": {"*down_proj*": {"rank_fraction": 1.0}}}, {},
     {"rank_fraction": 0.5}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "given", "matrices", "head"), USED)
def test_arguments_are_used(options: Any, given: Any, matrices: Any, head: Any, tmp_path: Path) -> None:
    groups = {group["name"]: group for group in made(tmp_path, options, **given).param_groups}
    for name, expected in (("hidden matrices", matrices), ("output head", head)):
        assert {key: groups[name][key] for key in expected} == expected
    assert groups["norms and biases"]["weight_decay"] == groups["embeddings"]["weight_decay"] == 0.0


# What `hf` gets with the class of a rule that a whole model has, TrainingArguments, and what all groups have.
WHOLE: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("adamw", {"lr": 1e-3}, {}, {"algorithm": "adamw", "lr": 1e-3, **ADAM}),
    ("adamw", {}, {"learning_rate": 1e-4}, {"algorithm": "adamw", "lr": 1e-4, **ADAM}),
    ("lion", {"lr": 1e-4}, {}, {"algorithm": "lion", "lr": 1e-4, "betas": (0.9, 0.95)}),
    ("lion", {}, {"learning_rate": 1e-5}, {"algorithm": "lion", "lr": 1e-5}),
]


@pytest.mark.parametrize(("rule", "options", "given", "expected"), WHOLE)
def test_a_whole_model_by_one_rule(rule: str, options: Any, given: Any, expected: Any, tmp_path: Path) -> None:
    for group in made(tmp_path, options, class_of(rule), **given).param_groups:
        assert {key: group[key] for key in expected} == expected


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"lr": 0.02}, {"learning_rate": 2e-4},
     r"lr=0.02 and TrainingArguments.learning_rate=0.0002 disagree; give one of them; a learning rate for what AdamW "),
    ({"lr": 0.02, "weight_decay": 0.1}, {"weight_decay": 0.2}, "weight_decay=0.1 and .*weight_decay=0.2 disagree"),
    ({"lr": 0.02, "betas": (0.9, 0.95)}, {"adam_beta2": 0.99},
     r"betas=\(0.9, 0.95\) and TrainingArguments.adam_beta1=0.9, TrainingArguments.adam_beta2=0.99 disagree"),
    ({"lr": 0.02, "eps": 1e-6}, {"adam_epsilon": 1e-7}, "eps=1e-06 and .*adam_epsilon=1e-07 disagree"),
    ({"lr": 0.02, "scalar_algorithm": "lion"}, {"adam_beta2": 0.99}, "is for AdamW, but scalar_algorithm is 'lion'"),
    ({"lr": 0.02}, {"optim": "adafactor"}, "TrainingArguments.optim should not be set beside hf.*, but is .*adafactor"),
    ({"lr": 0.02}, {"optim_args": "rank=4"}, "TrainingArguments.optim_args should not be set .* 'rank=4'"),
    ({"lr": 0.02}, {"optim_target_modules": "all-linear"}, "TrainingArguments.optim_target_modules should not be set"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "given", "message"), REFUSED)
def test_arguments_that_have_no_use_are_refused(options: Any, given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^hf: {message}" if message.startswith("lr=") else message):
        made(tmp_path, options, **given)


def test_the_default_learning_rate_is_the_optimizers_own_and_said(tmp_path: Path) -> None:
    for make, lr in ((orthon.Muon, 0.01), (class_of("lion"), 0.0003), (class_of("adamw"), 0.003)):
        name = make.__name__
        message = f"{name} takes its own default, lr={lr}, as TrainingArguments.learning_rate=5e-05 is at its default"
        with pytest.warns(UserWarning, match=message):
            assert made(tmp_path, {}, make).param_groups[0]["lr"] == lr


def test_betas_for_adamw_are_refused_for_a_model_of_lion(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adam_beta2=0.99 is for AdamW, but the optimizer is Lion"):
        made(tmp_path, {"lr": 1e-4}, class_of("lion"), adam_beta2=0.99)


def test_a_trainer_that_does_not_take_it_takes_the_attribute(tmp_path: Path) -> None:
    given = Seq2SeqTrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    run = Seq2SeqTrainer(model=llama(), args=given, train_dataset=rows(), data_collator=default_data_collator)
    run.optimizer_cls_and_kwargs = hf(orthon.Dion, lr=0.02)
    run.train()
    assert isinstance(unwrapped(run.optimizer), orthon.Dion)
    assert run.optimizer.param_groups[0]["initial_lr"] == 0.02


@pytest.mark.filterwarnings("ignore")
def test_a_search_moves_both_learning_rates(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Seen(Trainer):
        def create_optimizer(self, *args: Any, **options: Any) -> Any:
            optimizer = super().create_optimizer(*args, **options)
            seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})
            return optimizer

    run = Seen(
        model_init=llama,
        args=arguments(tmp_path, max_steps=2),
        train_dataset=rows(),
        eval_dataset=rows(4),
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=hf(orthon.Dion, scalar_lr_ratio=0.15),
    )
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 3e-3, 0.3, log=True)},
        backend="optuna",
        n_trials=2,
    )
    assert best.hyperparameters["learning_rate"] in [each["hidden matrices"] for each in seen]
    assert len({each["hidden matrices"] for each in seen}) == 2
    for each in seen:
        assert each["output head"] == 0.15 * each["hidden matrices"]


def test_what_is_wrong_is_said() -> None:
    for wrong in (torch.optim.AdamW, orthon.MixedOptimizer, "dion", orthon.Dion.for_model(nn.Linear(2, 2), lr=0.1)):
        with pytest.raises(TypeError, match="hf: optimizer should be a class such as orthon.Dion, but is "):
            hf(wrong)
    with pytest.raises(ValueError, match="hf: sync_gradients should be False, but is True; the Trainer averages"):
        hf(orthon.Dion, sync_gradients=True, replicas="world")
    factory, options = hf(orthon.Dion, lr=0.02)
    with pytest.raises(TypeError, match=r"hf\(orthon.Dion\): should be called by a transformers.Trainer, .*for_model"):
        factory()(llama(), **options)


def test_zero_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, hf(orthon.Dion, lr=0.02))
    run.is_deepspeed_enabled = True  # as with TrainingArguments.deepspeed, where DeepSpeed is installed
    with pytest.raises(ValueError, match="TrainingArguments.deepspeed should not be set: ZeRO makes vectors"):
        run.create_optimizer()


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Dion: unexpected keyword argument 'rank_fractoin'"):
        made(tmp_path, {"lr": 0.02, "rank_fractoin": 0.5})


def test_a_trainer_that_searches_gets_each_trials_rate(tmp_path: Path) -> None:
    """As `hyperparameter_search` does: it sets the arguments of each trial, and begins anew."""
    run = trainer(tmp_path, hf(orthon.Dion, rank_fraction=0.5), max_steps=1, learning_rate=0.01)
    for rate in (0.01, 0.04):
        run.args.learning_rate, run.optimizer = rate, None
        run.train()
        assert logged(run, "learning_rate") == [rate]
