"""State divided over ranks ↔ state as one process has it."""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from orthon.sharding import placed_like

# Weights divided along one dimension twice are gathered in two steps; torch warns that one would be faster.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def gather(state: Any, keep: bool) -> Any:
    """The same dictionaries and lists with whole tensors in main memory in place of divided ones.

    All ranks call it together; one tensor at a time is whole on the device.

    Args:
        state: Of a model or optimizer.
        keep: Whether this rank wants the tensors; the others get None for each.
    """
    if isinstance(state, dict):
        return {key: gather(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [gather(value, keep) for value in state]
    if not isinstance(state, Tensor):
        return state
    whole = state.full_tensor() if isinstance(state, DTensor) else state
    return whole.cpu() if keep else None


def divide(whole: Tensor, like: Tensor) -> Tensor:
    """The tensor in the layout of another; every rank brings the whole one, and nothing is sent.

    Raises:
        RuntimeError: Their shapes differ.
    """
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    if whole.shape != like.shape:
        raise RuntimeError(f"a tensor of shape {tuple(whole.shape)} does not fit one of {tuple(like.shape)}")
    return placed_like(whole, like).to(like.device, copy=True)


@torch.no_grad()
def load_weights(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole weights into a model that is divided or not.

    Raises:
        RuntimeError: Names or shapes do not fit.
    """
    layout = model.state_dict()
    model.load_state_dict({name: divide(whole, layout.get(name, whole)) for name, whole in state.items()})


def divide_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A whole optimizer state, with what has its parameter's shape in the parameter's layout.

    Args:
        optimizer: That is to load it.
        state: From `state_dict`, with whole tensors.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    divided = {}
    for number, values in state["state"].items():
        param = params[number] if number < len(params) else None
        divided[number] = {
            key: divide(value, param)
            if isinstance(value, Tensor) and param is not None and value.shape == param.shape
            else value
            for key, value in values.items()
        }
    return {**state, "state": divided}
