"""Numbers of steps, as the state of a parameter keeps them."""

import math
from numbers import Real

import torch
from torch import Tensor


def counter(value: object, where: str) -> object:
    """Return a number of steps as a float32 tensor without dims: in 16 bits it would stop growing, at 256 or 2048.

    Args:
        value: a number, or a tensor. What is neither, or is no counter, comes back as it is.
        where: names the entry; starts the message of the error.

    Raises:
        ValueError: for a number that is negative or not finite.
    """
    if isinstance(value, Tensor):
        if value.ndim or value.layout != torch.strided or not value.is_floating_point():
            return value
        found = value.to(torch.float32)
        if found.device.type != "cpu":  # for whose numbers the host would wait, or that has none
            return found
    elif isinstance(value, bool) or not isinstance(value, Real):
        return value
    else:
        found = torch.tensor(float(value), dtype=torch.float32, device="cpu")
    if not 0 <= float(found) < math.inf:
        raise ValueError(f"{where} should be a number of steps, but is {float(found)}")
    return found
