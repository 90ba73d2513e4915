"""Whether a step is left out, for gradients with infinities or NaNs, or with numbers too large for sums of them."""

import torch
from torch import Tensor

from orthon.sharding import local
from orthon.step.agreement import Agreement
from orthon.step.gradients import TOO_LARGE, Gradients
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member
from orthon.step.words import some

# For each device a tensor that is 1, or 0 where the step is to be left out. Empty where no step is ever left out.
Gates = dict[torch.device, Tensor]


def shut_gates(
    members: list[Member], gradients: Gradients, agreement: Agreement, scale: LossScale
) -> tuple[Gates, Tensor | None]:
    """Return the gates of a step, shut if a gradient of any rank cannot be used, without waiting for a device.

    Args:
        members: all parameters.
        gradients: of them.
        agreement: of the ranks.
        scale: what a gradient scaler has found.

    Returns:
        the gates, and whether they are shut, a boolean on a device; None if there are no parameters.
    """
    if not members:
        return {}, None
    devices = {local(member.param).device for member in members}
    finite = gradients.all_usable(scale.divisor)
    # What the scaler has seen may have changed since, by clipping or where partial sums have been added up.
    allowed = scale.allows(min(devices, key=str) if finite is None else finite.device)
    finite = agreement.all(members, allowed if finite is None else finite & allowed)
    return {device: finite.to(device, torch.float32) for device in devices}, ~finite


def nonfinite_error(names: list[str], owner: str) -> FloatingPointError:
    """Return the error for gradients that cannot be used, which names their parameters, as `Gradients` gives them."""
    bad = [name for name in names if not name.endswith(TOO_LARGE)]
    what = "infinities or NaNs" if bad else "numbers so large that sums of them would overflow"
    bad = bad or [name.removesuffix(TOO_LARGE) for name in names]
    return FloatingPointError(
        f"{owner}: the gradient of {some(bad)} has {what}; weights and state are as before "
        '(nonfinite="skip" leaves such steps out)'
    )
