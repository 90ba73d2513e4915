"""A run's state in one file, and how to go on from it."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from orthon.train.config import TrainConfig
from orthon.train.config_file import as_plain, flatten
from orthon.train.errors import UserError
from orthon.train.full_state import gather, load_weights
from orthon.train.launch import processes
from orthon.train.training import Training

# Settings that a continued run may change: the rest decides what the numbers so far mean.
CHANGEABLE = {
    "steps",
    "schedule.warmup",
    "schedule.decay",
    "schedule.final",
    "device",
    "mesh.dp_replicate",
    "mesh.dp_shard",
    "mesh.tp",
    "optimizer.compressed_sync",
    "activation_checkpointing",
    "log_every",
    "validate_every",
    "save_every",
    "keep_checkpoints",
    "sample_tokens",
}


def save_checkpoint(directory: Path, training: Training, config: TrainConfig, corpus: str) -> Path:
    """Write `checkpoints/step-….pt` of a run, and delete the oldest ones beyond `keep_checkpoints`.

    The file appears under its name only when it is whole. All ranks call it together; it holds what one process
    would have, so that any number of ranks can go on from it.

    Args:
        directory: Of the run.
        training: What to save.
        config: Settings of the run.
        corpus: Fingerprint of the text.
    """
    training.optimizers.consolidate()
    device = training.ranks.device
    content = {
        "step": training.step,
        "seconds": training.clock.seconds,
        "config": flatten(as_plain(config)),
        "corpus": corpus,
        "model": training.model.state_dict(),
        "optimizers": training.optimizers.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }
    if training.ranks.world > 1:
        content = gather(content, training.ranks.rank == 0)
    path = directory / "checkpoints" / f"step-{training.step:08d}.pt"
    training.ranks.on_main(lambda: _write(path, content, config.keep_checkpoints))
    return path


def _write(path: Path, content: dict[str, Any], keep: int) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)
    for old in checkpoints(path.parent.parent)[:-keep]:
        old.unlink()


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((directory / "checkpoints").glob("step-*.pt"))


def read_checkpoint(directory: Path) -> dict[str, Any]:
    """The newest checkpoint of a run.

    Raises:
        UserError: There is none, or it is damaged.
    """
    found = checkpoints(directory)
    if not found:
        raise UserError(f"there is no checkpoint in {directory}")
    try:
        content = torch.load(found[-1], map_location="cpu", weights_only=True, mmap=processes() > 1)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise UserError(
            f"checkpoint {found[-1]} is damaged; delete it to go on from the one before it"
            if len(found) > 1
            else f"checkpoint {found[-1]} is damaged, and there is no other"
        ) from error
    if not isinstance(content, dict) or "optimizers" not in content:
        raise UserError(f"{found[-1]} is no checkpoint of an orthon run")
    return {**content, "path": found[-1]}


def refuse_differences(before: dict[str, Any], config: TrainConfig, whose: str) -> None:
    """Refuse to go on with other settings than those that may change.

    Args:
        before: Settings so far, by dotted name.
        config: Settings to go on with.
        whose: Where the settings so far come from, for the error.

    Raises:
        UserError: Settings differ; it names the first.
    """
    now = flatten(as_plain(config))
    for name in sorted(before.keys() | now.keys()):
        if name not in CHANGEABLE and before.get(name) != now.get(name):
            raise UserError(f"{whose} has {name} {before.get(name)}, which cannot become {now.get(name)}")


def restore(content: dict[str, Any], training: Training, config: TrainConfig, corpus: str) -> None:
    """Bring a fresh training to the state of a checkpoint.

    Args:
        content: From `read_checkpoint`.
        training: Built from the same settings; changed in place.
        config: Its settings.
        corpus: Fingerprint of its text.

    Raises:
        UserError: The checkpoint belongs to another model, optimizer or text.
    """
    path = content["path"]
    refuse_differences(content["config"], config, f"checkpoint {path}")
    if content["corpus"] != corpus:
        raise UserError(f"checkpoint {path} was trained on another text: the files of data.source have changed")
    try:
        load_weights(training.model, content["model"])
        training.optimizers.load_state_dict(content["optimizers"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit this model and optimizer: {reason}") from error
    training.step = content["step"]
    training.clock.seconds = content["seconds"]
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] and training.ranks.device.type == "cuda":
        torch.cuda.set_rng_state(content["cuda_rng"][0], training.ranks.device)
