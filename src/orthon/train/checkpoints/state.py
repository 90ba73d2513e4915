"""The tensors and options that a checkpoint holds, for one process and for many."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load

from orthon.saving import LoadPlanner, SafeReader
from orthon.train.processes.ranks import Processes
from orthon.train.step.training import Training


def run_state(training: Training) -> dict[str, Any]:
    """Weights, state of the optimizers, and state of the random generators.

    The names do not depend on the layout. The tensors are those of the training itself, not copies.

    Args:
        training: its optimizers have state, which is the same on all replicas.
    """
    state: dict[str, Any] = _of_all_ranks(training)
    if training.ranks.rank == 0:
        state["rng"] = _rng(training.ranks)
    return state


def load_run_state(path: Path, training: Training) -> None:
    """Load a checkpoint into a training that has just been built. All ranks call it together.

    Args:
        path: the folder of the checkpoint.
        training: built from the same settings, on any number of ranks. Changed in place.

    Raises:
        ValueError: the state does not fit.
    """
    ranks, optimizers = training.ranks, training.optimizers
    reader = SafeReader(path)
    saved = reader.read_metadata().state_dict_metadata
    state = _of_all_ranks(training)
    # A checkpoint from a CPU has no state for the generator of a GPU.
    state["rng"] = {name: value for name, value in _rng(ranks).items() if f"rng.{name}" in saved}
    try:
        load(
            state,
            storage_reader=reader,
            planner=LoadPlanner(),
            process_group=ranks.background,
            no_dist=ranks.mesh is None,
        )
        set_model_state_dict(training.model, state["model"])
        set_optimizer_state_dict(training.model, optimizers.each, state["optimizer"])
        for name, value in state["rng"].items():
            _set_rng(name, value, ranks)
    except CheckpointException as error:
        raise ValueError(_said(first_failure(error))) from error
    except Exception as error:  # what others have saved can break torch's loading in many ways
        raise ValueError(_said(error)) from error


def _said(error: BaseException) -> str:
    """Return what an error says, with its kind where that tells more."""
    text = str(error)
    return text if isinstance(error, ValueError | RuntimeError) and text else f"{type(error).__name__}: {text}"


def first_failure(error: CheckpointException) -> BaseException:
    """Return the error of the first rank that has failed."""
    cause, _ = error.failures[min(error.failures)]
    return cause


def _of_all_ranks(training: Training) -> dict[str, Any]:
    model, optimizers = training.model, training.optimizers
    return {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizers.each)}


def _set_rng(name: str, value: torch.Tensor, ranks: Processes) -> None:
    if name == "cpu":
        torch.set_rng_state(value)
    else:
        torch.cuda.set_rng_state(value, ranks.device)


def _rng(ranks: Processes) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return state
