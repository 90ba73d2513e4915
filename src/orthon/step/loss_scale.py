"""The scale of the loss, as torch.amp.GradScaler hands it to an optimizer that looks after overflows itself.

Left to itself, a GradScaler decides on the host and on each rank alone whether `step` is called at all. Where ranks
have gradients of their own they would decide differently, and wait for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orthon.linalg import compute_dtype


@dataclass(frozen=True)
class LossScale:
    """What the scaler knows of this rank's gradients.

    Attributes:
        found_inf: a tensor of one number, which is not zero if the gradients have infinities or NaNs; None where no
            scaler is in charge.
        divisor: what the gradients are still to be divided by, a tensor of one number; None if they have their size.
    """

    found_inf: Tensor | None = None
    divisor: Tensor | None = None

    def allows(self, device: torch.device) -> Tensor:
        """Return whether the scaler has found the gradients finite, a boolean on the device."""
        if self.found_inf is None:
            return torch.ones((), dtype=torch.bool, device=device)
        found_inf = torch.as_tensor(self.found_inf, device=getattr(self.found_inf, "device", "cpu"))
        return (found_inf == 0).to(device).reshape(())  # the number 0 where the rank has no gradients

    def unscaled(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Return gradients, which lie on one device, in their own size.

        Those in float16 come back in float32: the scale has kept them in a range that they leave now.
        """
        if self.divisor is None:
            return list(grads)
        divisor = self.divisor.to(grads[0].device).reshape(())
        return [grad.to(compute_dtype(grad.dtype)) / divisor for grad in grads]
