"""Who decides whether a step under a gradient scaler is taken: the scaler, or the optimizer's `step`.

torch.amp.GradScaler asks an optimizer for `_step_supports_amp_scaling`. If it is true, the scaler calls `step` in any
case, with what it has found. Then ranks can decide together, and on the device. Others ask for the same attribute, and
take it for "fused: unscales the gradients itself". Lightning refuses to clip gradients then. So the attribute is true
for the scaler alone.

Accelerate counts a step as taken if `step` has been called. For that it puts a function of its own in the place of
`step`. So where there is one, the scaler decides, as it does with other optimizers, unless that could part the ranks.
"""

from types import FrameType
from typing import Any

from orthon.sharding import is_dtensor


def step_decides(optimizer: Any, asking: FrameType) -> bool:
    """Return whether `step` is to decide.

    Args:
        optimizer: an optimizer with `param_groups` and `sync_gradients`.
        asking: the frame of who wants to know.
    """
    if asking.f_globals.get("__name__") != "torch.amp.grad_scaler":
        return False
    step = vars(optimizer).get("step")
    is_replaced = step is not None and not getattr(step, "_wrapped_by_lr_sched", False)
    return not is_replaced or _may_differ(optimizer)


def _may_differ(optimizer: Any) -> bool:
    """Return whether scalers may find an infinity on some ranks alone.

    DistributedDataParallel gives all ranks the same gradients. For DTensors of one mesh torch asks all of its ranks.
    """
    meshes = {p.device_mesh if is_dtensor(p) else None for group in optimizer.param_groups for p in group["params"]}
    return bool(optimizer.sync_gradients) or len(meshes) > 1
