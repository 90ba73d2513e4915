"""When it pays to compute a part and send the result, instead of computing everything on every rank."""

import torch

# Floating-point operations that a rank does in the time in which it sends or receives one number. On CPU cores
# that talk through gloo: 40 GFLOP/s against 8 ns; on GPUs: 400 TFLOP/s against 40 ps (50 GB/s of 16-bit numbers).
FLOPS_PER_NUMBER = {"cpu": 300.0, "cuda": 16_000.0}


def flops_per_number(device: torch.device) -> float:
    """Return how many operations take as long as sending a number."""
    return FLOPS_PER_NUMBER.get(device.type, FLOPS_PER_NUMBER["cuda"])


def worth_sending(flops: float, device: torch.device) -> bool:
    """Return whether numbers that take so many operations each are better received than computed."""
    return flops > flops_per_number(device)
