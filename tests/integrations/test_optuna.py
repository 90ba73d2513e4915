"""A search by Optuna over the learning rate and the rank, all trials in one process."""

import gc
import warnings
from typing import Any

import torch
from torch import nn

import orthon
from orthon.algorithms import RULES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import optuna

TRIALS = 12


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return (model(x) - x[:, :4].sin()).square().mean()


def counts() -> tuple[int, int]:
    """Return how many tensors and how many hooks of modules and optimizers there are."""
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(each), torch.Tensor) for each in objects)
    return tensors, sum(issubclass(type(each), torch.utils.hooks.RemovableHandle) for each in objects)


def test_a_search_moves_both_learning_rates_and_leaves_nothing_behind() -> None:
    seen: list[dict[str, Any]] = []
    left: list[tuple[int, int]] = []

    def objective(trial: optuna.Trial) -> float:
        model = net()
        optimizer = orthon.create(
            "dion",
            model,
            lr=trial.suggest_float("lr", 1e-3, 0.3, log=True),
            rank_fraction=trial.suggest_categorical("rank_fraction", [1 / 8, 1 / 4, 1.0]),
            scalar_lr_ratio=0.1,
        )
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 20)
        seen.append({g["name"]: (g["lr"], g.get("rank_fraction")) for g in optimizer.param_groups} | trial.params)
        for step in range(20):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            schedule.step()
            trial.report(loss.item(), step)
            if step == 15 and trial.should_prune():
                raise optuna.TrialPruned
        return loss_of(model, 100).item()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(4))
    rules = sorted(RULES)
    study.optimize(objective, n_trials=TRIALS, callbacks=[lambda *_: left.append(counts())])
    assert study.best_value < loss_of(net(), 100).item()
    for trial in seen:
        assert trial["hidden matrices"] == (trial["lr"], trial["rank_fraction"])
        assert trial["output head"] == (0.1 * trial["lr"], None)
    assert len({trial["lr"] for trial in seen}) == TRIALS
    assert max(tensors for tensors, _ in left[2:]) <= left[1][0]
    assert max(hooks for _, hooks in left[2:]) <= left[1][1]
    assert sorted(RULES) == rules


def test_the_same_trial_twice_is_the_same() -> None:
    def objective(trial: optuna.Trial) -> float:
        model = net()
        optimizer = orthon.Dion.for_model(model, lr=trial.suggest_float("lr", 0.01, 0.1), rank_fraction=0.25)
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
        return loss_of(model, 100).item()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for _ in range(2):
        study.enqueue_trial({"lr": 0.05})
    study.optimize(objective, n_trials=2)
    first, second = study.trials
    assert first.value == second.value
