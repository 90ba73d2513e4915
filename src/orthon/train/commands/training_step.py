"""How long the rest of a training step takes."""

from dataclasses import dataclass
from typing import Self

from orthon.machines import Machine
from orthon.train.settings.cluster import PlanConfig


@dataclass(frozen=True)
class TrainingStep:
    """The rest of a training step: forward and backward passes.

    Attributes:
        seconds: that it takes; None if that is not known.
        assumed: in words.
    """

    seconds: float | None = None
    assumed: str = ""

    @classmethod
    def of(cls, config: PlanConfig, weights: int, machine: Machine) -> Self:
        """Return what the settings say, or an estimate.

        Args:
            config: settings.
            weights: of the model, as many as work on one token.
            machine: on which it trains.
        """
        if config.step_seconds is not None:
            return cls(
                config.step_seconds, f"a training step without the optimizer takes {config.step_seconds:g} s, as given"
            )
        if config.tokens_per_step is None:
            return cls()
        each = 8 if config.recompute else 6
        rate = config.utilization * machine.bfloat16 * config.ranks
        seconds = each * weights * config.tokens_per_step / rate
        again = ", activations computed again," if config.recompute else ""
        return cls(
            seconds,
            f"a training step without the optimizer is taken to need {each} operations for each of {weights:,} weights "
            f"and {config.tokens_per_step:,} tokens{again} at {config.utilization:.0%} of "
            f"{machine.bfloat16 / 1e12:.3g} TFLOP/s on each of {config.ranks} GPUs: {seconds:.3g} s",
        )
