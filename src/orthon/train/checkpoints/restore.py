"""Continue a run from a checkpoint, and decide which settings may change then."""

from typing import Any

from orthon.saving.shown import one_line, unquoted
from orthon.train.checkpoints.newest import Checkpoint
from orthon.train.checkpoints.state import load_run_state
from orthon.train.errors import UserError
from orthon.train.settings.file import as_plain, flatten
from orthon.train.settings.run import TrainConfig
from orthon.train.step.training import Training

# Where the text lies, and what makes its tokens. These may be moved, as the text is known by its content.
PLACES = {"data.paths", "data.held_out_paths", "data.tokenizer"}

# Settings that may change when a run is continued. With others, the numbers so far would mean something else.
CHANGEABLE = {
    *PLACES,
    "steps",
    "schedule.warmup",
    "schedule.decay",
    "schedule.final",
    "device",
    "mesh.dp_replicate",
    "mesh.dp_shard",
    "mesh.tp",
    "optimizer.rank_fraction",
    "optimizer.compressed_sync",
    "activation_checkpointing",
    "log_every",
    "validate_every",
    "save_every",
    "keep_checkpoints",
    "sample_tokens",
}


def refuse_differences(before: dict[str, Any], config: TrainConfig, whose: str) -> None:
    """Refuse settings that differ in more than those that may change.

    Args:
        before: the settings so far, by dotted name.
        config: the settings to continue with.
        whose: where the settings so far come from, for the error.

    Raises:
        UserError: a setting differs that may not; it names the first one.
    """
    now = flatten(as_plain(config))
    for name in sorted(before.keys() | now.keys()):
        if name not in CHANGEABLE and before.get(name) != now.get(name):
            old, new = unquoted(before.get(name)), unquoted(now.get(name))
            raise UserError(f"{whose} has {one_line(name, limit=120)} {old}, which cannot become {new}")


def restore(checkpoint: Checkpoint, training: Training, config: TrainConfig, corpus: str) -> None:
    """Load a checkpoint into a training that has just been built. All ranks call it together.

    Args:
        checkpoint: from `newest_checkpoint`.
        training: built from the same settings, on any number of ranks. Changed in place.
        config: its settings.
        corpus: fingerprint of its text.

    Raises:
        UserError: the checkpoint belongs to another model, optimizer or text.
    """
    path, manifest = checkpoint.path, checkpoint.manifest
    refuse_differences(manifest.config, config, f"checkpoint {path}")
    if manifest.corpus != corpus:
        raise UserError(
            f"checkpoint {path} was trained on another text: the files of data.source or data.tokenizer have changed"
        )
    try:
        load_run_state(path, training)
    except ValueError as error:
        raise UserError(f"checkpoint {path} does not fit this model and optimizer: {one_line(str(error))}") from error
    training.step = manifest.step
    training.clock.seconds = manifest.seconds
