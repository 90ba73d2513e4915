"""Write the checkpoints of a run while it trains."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import async_save

from orthon.train.checkpoints.manifest import Manifest
from orthon.train.checkpoints.state import first_failure, run_state
from orthon.train.checkpoints.writer import CheckpointWriter, remove
from orthon.train.errors import TrainingError
from orthon.train.processes.ranks import Processes
from orthon.train.settings.file import as_plain, flatten
from orthon.train.settings.run import TrainConfig
from orthon.train.step.training import Training


class Saver:
    """Saves checkpoints of a training, one at a time.

    Training waits while its state is copied to main memory. Then a thread of each rank writes the copy. The threads
    communicate over a process group of their own. The end of the `with` block always waits for the last checkpoint.

    Args:
        directory: of the run.
        config: settings of the run.
        corpus: fingerprint of the text.
        ranks: who takes part.
        say: gets a line for each checkpoint that could not be written.
    """

    def __init__(
        self, directory: Path, config: TrainConfig, corpus: str, ranks: Processes, say: Callable[[str], None]
    ) -> None:
        self.directory, self.config, self.corpus, self.ranks, self.say = directory, config, corpus, ranks, say
        self._running: tuple[CheckpointWriter, Future[Any]] | None = None

    def save(self, training: Training) -> None:
        """Begin to write `checkpoints/step-…` as soon as the checkpoint before is done. All ranks call it together.

        If a checkpoint cannot be written, `say` is told, and training goes on.

        Args:
            training: what to save, after at least one step.
        """
        failure = self._wait()
        if failure is not None:
            self.say(f"{failure}; the ones before it stay, and training goes on")
        training.optimizers.consolidate()
        manifest = Manifest(
            step=training.step,
            sequences=training.step * self.config.batch_size,
            seconds=training.clock.seconds,
            config=flatten(as_plain(self.config)),
            corpus=self.corpus,
        )
        writer = CheckpointWriter(self.directory, manifest, self.config.keep_checkpoints)
        future = async_save(
            run_state(training),
            storage_writer=writer,
            process_group=self.ranks.background,
            no_dist=self.ranks.mesh is None,
        )
        self._running = writer, cast("Future[Any]", future)

    def finish(self) -> None:
        """Wait for the last checkpoint. All ranks call it together.

        Raises:
            TrainingError: it could not be written.
        """
        failure = self._wait()
        if failure is not None:
            raise TrainingError(f"{failure}, and it was the last one of the run")

    def _wait(self) -> str | None:
        """Wait for the checkpoint that is being written. Return why it failed, the same on all ranks, or None."""
        if self._running is None:
            return None
        writer, future = self._running
        failure = None
        try:
            future.result()
        except CheckpointException as error:
            cause = first_failure(error)
            if not isinstance(cause, OSError | RuntimeError):  # not a failure of the disk
                raise cause from error
            failure = f"checkpoint {writer.target} could not be written: {' '.join(str(cause).split())}"
            if self.ranks.rank == 0:  # no rank is writing any more
                with suppress(OSError):  # the next save tries again
                    remove(writer.part)
        self._running = None
        return failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RuntimeError):  # another process has ended; the error that leads here says so
            failure = self._wait()
            if failure is not None:
                self.say(failure)
