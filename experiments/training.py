"""Train one cell in this process. No file is written."""

import math
from collections.abc import Callable

import torch

from experiments.cell import Cell
from experiments.place import Place
from experiments.results import Outcome
from orthon.train.errors import DivergedError
from orthon.train.model.build import build_model
from orthon.train.model.parallelize import parallelize
from orthon.train.processes.ranks import Processes
from orthon.train.step.clock import StepClock
from orthon.train.step.optimizers import build_optimizers
from orthon.train.step.training import Training, validation_loss
from orthon.train.text.windows import BatchOrder, Windows


def train(cell: Cell, progress: Callable[[float], None], place: Place) -> Outcome:
    """Train a cell to its end, or until it diverges.

    Args:
        cell: The run.
        progress: Gets the part of the run that is done, at each measurement.
        place: Where, and on which text.

    Raises:
        UserError: The settings cannot be used.
    """
    config, text = cell.config(place.device), place.corpus()
    ranks = Processes(torch.device(place.device))
    context = config.model.shape.context
    windows = Windows(text.train, context, text.vocab_size, "training")
    held_out = Windows(text.held_out, context, text.vocab_size, "held-out")
    model = build_model(config.model.shape, text.vocab_size, config.seed)
    replica = parallelize(model, config, ranks, average=True)
    optimizers = build_optimizers(model, config.optimizer, config.seed, ranks)
    training = Training(model, replica, optimizers, StepClock(ranks.device), ranks)
    order = BatchOrder(len(windows), config.batch_size, config.seed)
    validation = held_out.read(held_out.spread(config.validation_sequences))

    clock, losses, in_optimizer, diverged = training.clock, [], 0.0, False
    try:
        for step in range(config.steps):
            before = clock.seconds
            clock.start()
            report = training.advance(windows.read(order.indices(step)), config, report=True)
            clock.stop()
            assert report is not None
            in_optimizer += report.optimizer_share * (clock.seconds - before)
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                loss = validation_loss(model, validation, config, ranks)
                if not math.isfinite(loss):
                    raise DivergedError(f"the held-out loss of step {step + 1} is {loss}")
                losses.append((step + 1, round(loss, 6)))
                progress((step + 1) / config.steps)
    except DivergedError:  # that a learning rate is too high is a result
        clock.stop()
        diverged = True
    return Outcome(
        held_out=tuple(losses),
        diverged=diverged,
        seconds=round(clock.seconds, 3),
        optimizer_share=round(in_optimizer / clock.seconds, 4),
    )
