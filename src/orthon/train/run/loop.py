"""The training loop: step, measure, report, save."""

from collections.abc import Callable

from orthon.train.checkpoints.saver import Saver
from orthon.train.results.metrics import Record
from orthon.train.run.interrupt import Interrupt
from orthon.train.settings.run import TrainConfig
from orthon.train.step.training import Training, validation_loss
from orthon.train.text.windows import BatchOrder, Windows


def train(
    training: Training,
    config: TrainConfig,
    text: Windows,
    held_out: Windows,
    publish: Callable[[Record], None],
    saver: Saver,
) -> bool:
    """Train from the step that `training` has reached to the last step, or until the user interrupts.

    Args:
        training: changed in place.
        config: settings of the run.
        text: what to train on.
        held_out: what to validate on.
        publish: gets the numbers of each step that is logged.
        saver: writes checkpoints of `training`.

    Returns:
        Whether the last step was reached. In both cases there is a checkpoint of the step that was reached, and at
        least one step has been done.

    Raises:
        TrainingError: the loss or a gradient is not finite, or the last checkpoint could not be written.
    """
    order = BatchOrder(len(text), config.batch_size, config.seed)
    validation = held_out.read(held_out.spread(config.validation_sequences))
    clock, ranks, tokens_per_step = training.clock, training.ranks, config.batch_size * config.model.shape.context
    steps_before, seconds_before = training.step, clock.seconds  # at the last report
    saved = training.step  # the step of the newest checkpoint
    with Interrupt() as interrupt:
        # A signal may reach the ranks at different times, so they agree on when to stop. One step is always done:
        # before it there is nothing to save.
        while training.step < config.steps and not (training.step and ranks.any(interrupt.requested)):
            number = training.step + 1
            last = number == config.steps
            validate = last or number % config.validate_every == 0
            report = validate or number % config.log_every == 0

            clock.start()
            indices = order.indices(training.step, ranks.data_rank, ranks.data_world)
            numbers = training.advance(text.read(indices), config, report)
            if numbers is not None:
                clock.stop()
                val_loss = None
                if validate:
                    val_loss = validation_loss(training.model, validation, config, ranks)
                tokens = (training.step - steps_before) * tokens_per_step
                record = Record(
                    step=number,
                    loss=numbers.loss,
                    val_loss=val_loss,
                    lr=numbers.lr,
                    grad_norm=numbers.grad_norm,
                    max_logit=numbers.max_logit,
                    tokens_per_second=tokens / (clock.seconds - seconds_before),
                    optimizer_share=numbers.optimizer_share,
                    seconds=clock.seconds,
                )
                publish(record)
                steps_before, seconds_before = training.step, clock.seconds
            if number % config.save_every == 0:
                clock.stop()
                saver.save(training)
                saved = training.step
        clock.stop()
        if saved != training.step:
            saver.save(training)
        saver.finish()
    return training.step >= config.steps
