"""The learning rate over the run, as a factor on the full learning rate of each group."""

import math

from orthon.train.settings.run import ScheduleConfig


def lr_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Return the factor for step `step` of `steps`, counted from 0. It rises to 1 in the warm-up, then it decays.

    It is above 0 in the first step of the warm-up. It would reach `final` in the step after the last one.
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.decay == "constant":
        return 1.0
    progress = (step - warmup) / (steps - warmup)
    left = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * left
