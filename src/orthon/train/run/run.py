"""One run, from its settings to its results on disk."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from rich.console import Console

from orthon.train.checkpoints.newest import Checkpoint
from orthon.train.checkpoints.restore import restore
from orthon.train.checkpoints.saver import Saver
from orthon.train.errors import TrainingError
from orthon.train.model.attention_logits import record_logits
from orthon.train.model.build import build_model
from orthon.train.model.parallelize import parallelize
from orthon.train.model.sample import generate
from orthon.train.processes.ranks import AXES, Processes
from orthon.train.results.directory import CONFIG, PLOT, SAMPLE, SUMMARY, Summary, named, replace_file, write_summary
from orthon.train.results.metrics import MetricsLog, Record, read_metrics
from orthon.train.results.progress import make_progress
from orthon.train.run.loop import train
from orthon.train.settings.file import write_config
from orthon.train.settings.run import TrainConfig
from orthon.train.step.clock import StepClock
from orthon.train.step.optimizers import build_optimizers, full_lr
from orthon.train.step.training import Training, validation_loss
from orthon.train.text.tokens import Corpus
from orthon.train.text.windows import Windows


class Run:
    """A model, its optimizers and its text, ready to train in a directory.

    On many ranks, each rank builds one, and all ranks call the methods together. Rank 0 writes the files and the
    messages. Nothing is written before `train`, so that settings that cannot work leave no trace.

    Args:
        config: settings.
        directory: where results go.
        corpus: the text.
        checkpoint: from `newest_checkpoint`, to continue from it, or None to begin.
        ranks: who takes part.

    Raises:
        UserError: settings, text and checkpoint do not fit each other.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        corpus: Corpus,
        checkpoint: Checkpoint | None,
        ranks: Processes,
    ) -> None:
        self.config, self.directory, self.corpus, self.ranks = config, directory, corpus, ranks
        context = config.model.shape.context
        self.text = Windows(corpus.train, context, corpus.vocab_size, "training")
        self.held_out = Windows(corpus.held_out, context, corpus.vocab_size, "held-out")
        self.model = build_model(config.model.shape, corpus.vocab_size, config.seed)
        if config.qk_clip is not None:
            record_logits(self.model)
        replica = parallelize(self.model, config, ranks, average=not config.optimizer.compressed_sync)
        optimizers = build_optimizers(self.model, config.optimizer, config.seed, ranks)
        self.training = Training(self.model, replica, optimizers, StepClock(ranks.device), ranks)
        if checkpoint is not None:
            restore(checkpoint, self.training, config, corpus.fingerprint)

    def describe(self) -> str:
        """Return what the run will do, in a few lines."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        config = self.config
        start = f" from step {self.training.step}" if self.training.step else ""
        return (
            f"model      LLaMA {config.model.name}, {parameters / 1e6:.2f} M parameters with embeddings, "
            f"context {config.model.shape.context}\n"
            f"text       {self.corpus.description}\n"
            f"optimizer  {config.optimizer.name}, lr {full_lr(config.optimizer):g}; "
            f"AdamW for the rest, lr {config.optimizer.scalar_lr:g}\n"
            f"run        {config.steps} steps{start} of {config.batch_size} sequences "
            f"on {self._where()}, in {self.directory}"
        )

    def train(self, console: Console) -> Summary | None:
        """Train to the end and write the results. None if the user has interrupted it.

        Raises:
            TrainingError: the loss or a gradient is not finite, or the last checkpoint could not be written.
        """

        def say(line: str) -> None:
            console.print(line, soft_wrap=True, markup=False)

        saver = Saver(self.directory, self.config, self.corpus.fingerprint, self.ranks, say)
        with self._publishing(console, say) as publish, saver:
            finished = train(self.training, self.config, self.text, self.held_out, publish, saver)
        if not finished:
            return None
        val_loss = self._last_validation()
        sample = self._sample()
        return self.ranks.on_main(lambda: self._finish(val_loss, sample))

    @contextmanager
    def _publishing(self, console: Console, say: Callable[[str], None]) -> Iterator[Callable[[Record], None]]:
        log = self.ranks.together(lambda: self._begin(say))
        if log is None:
            yield lambda _: None
            return
        try:
            with make_progress(console, self.training.step, self.config.steps) as show:

                def publish(record: Record) -> None:
                    log.write(record)
                    show(record)

                yield publish
        finally:
            log.close()

    def _begin(self, say: Callable[[str], None]) -> MetricsLog | None:
        """Prepare the directory, and open the log; on rank 0 alone."""
        if self.ranks.rank:
            return None
        records = read_metrics(self.directory)  # before anything is written, as it may refuse
        self.directory.mkdir(parents=True, exist_ok=True)
        write_config(self.directory / CONFIG, self.config)
        (self.directory / SUMMARY).unlink(missing_ok=True)  # there is one if a complete run gets more steps
        return MetricsLog(self.directory, records, self.training.step, say)

    def _where(self) -> str:
        """Return the devices and how they share the work, in words."""
        ranks = self.ranks
        if ranks.mesh is None:
            return str(ranks.device)
        axes = [f"{name} {ranks.size(name)}" for name in AXES if ranks.size(name) > 1]
        return f"{ranks.world} × {ranks.device.type} ({' × '.join(axes)})"

    def _last_validation(self) -> float:
        """Return the loss on the held-out text after the last step. It is computed anew if its line is missing."""

        def read() -> float | None:
            last = next(reversed(read_metrics(self.directory)), None)
            return last.val_loss if last is not None and last.step == self.config.steps else None

        known = self.ranks.on_main(read)
        if known is not None:
            return known
        sequences = self.held_out.read(self.held_out.spread(self.config.validation_sequences))
        return validation_loss(self.training.model, sequences, self.config, self.ranks)

    def _finish(self, val_loss: float, sample: str) -> Summary:
        """Write the results.

        Raises:
            TrainingError: the disk is full, or has another fault.
        """
        try:
            return self._write_results(val_loss, sample)
        except OSError as error:
            raise TrainingError(
                f"{error.filename}: {error.strerror}; all {self.config.steps} steps are done and saved: "
                f"orthon train --resume {quote(str(self.directory))} writes the results"
            ) from error

    def _write_results(self, val_loss: float, sample: str) -> Summary:
        from orthon.train.results.plots import plot_run  # here: matplotlib takes long to import, and rank 0 alone plots

        records, optimizer = read_metrics(self.directory), self.config.optimizer
        replace_file(self.directory / SAMPLE, sample + "\n")
        with named(self.directory / PLOT):
            plot_run(
                self.directory / PLOT,
                f"LLaMA {self.config.model.name}, {optimizer.name}, lr {full_lr(optimizer):g}",
                records,
            )
        summary = Summary(
            steps=self.config.steps,
            val_loss=val_loss,
            seconds=self.training.clock.seconds,
            optimizer_share=mean_share(records),
            state_bytes=self.training.optimizers.state_bytes(),
            corpus=self.corpus.fingerprint,
            sample=sample,
        )
        write_summary(self.directory, summary)
        return summary

    def _sample(self) -> str:
        """Return a prompt from the held-out text, a mark, and the text with which the model continues it."""
        tokens = self.config.sample_tokens
        if not tokens:
            return ""
        prompt_length = min(64, self.config.model.shape.context - tokens)
        window = self.held_out.spread(3)[-1:]  # the last of three: not the beginning of a document
        prompt = self.held_out.read(window)[0, :prompt_length]
        generated = generate(self.model, prompt, tokens, self.config.seed)
        return f"{self.corpus.decode(prompt.tolist())}▮{self.corpus.decode(generated)}"


def mean_share(records: list[Record]) -> float:
    """Return the optimizer's share of the training time: the mean over all records, weighted by their steps' time.

    It is not a number if there are no records, as the disk was full.
    """
    if not records:
        return math.nan
    times = [1 / record.tokens_per_second for record in records]
    shares = [record.optimizer_share for record in records]
    return sum(time * share for time, share in zip(times, shares, strict=True)) / sum(times)
