"""Shapes that torch 2.11 has wrong on the device "meta": norms over axes of length 1 keep these axes there."""

from typing import Any

import torch
from torch import Tensor

_NORM = torch.ops.aten.linalg_vector_norm.default


def right_shape(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """Return the result of an operation with the shape that it has on other devices."""
    if func is not _NORM or not isinstance(result, Tensor) or not result.is_meta:
        return result
    given = dict(zip(("self", "ord", "dim", "keepdim"), args, strict=False)) | kwargs
    A, dim = given["self"], given.get("dim")
    if dim is None or given.get("keepdim") or result.ndim < A.ndim:
        return result
    return result.squeeze(tuple(dim))
