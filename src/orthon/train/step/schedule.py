"""The learning rate over the run, as a factor on each group's own."""

import math

from orthon.train.settings.run import ScheduleConfig


def lr_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Factor for step `step` (0 is the first) of `steps`: rises to 1 in the warm-up, then decays.

    The first step of a warm-up is already above 0, and the step after the last one would have `final`.
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.decay == "constant":
        return 1.0
    progress = (step - warmup) / (steps - warmup)
    left = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * left
