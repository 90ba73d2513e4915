"""Modules that wrap another one: what they call it, and the module inside.

The classes are known by name, so that nothing of the packages that they come from is imported.
"""

from torch import nn

from orthon.step.names import OF_WRAPPERS

# Classes of wrappers, and the attribute in which each keeps the module. A part of a parameter's name is left out only
# where one of them put it: other modules may have children of these names.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",  # of torch.optim.swa_utils
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_forward_module",  # of Lightning Fabric
}

# Classes of PEFT with the module that they stand for, under these names. The parameter's name keeps them.
_ADAPTED = {
    "AuxiliaryTrainingWrapper": ("original_module", "modules_to_save"),
    "ModulesToSaveWrapper": ("original_module", "modules_to_save"),
    "BaseTunerLayer": ("base_layer",),
}
# Classes whose children are whole models.
_CARRIERS = {"LightningModule", "PeftModel", "BaseTuner"}


def class_names(module: nn.Module) -> set[str]:
    """Return the names of a module's class and of its base classes; fully_shard puts a class of its own in front."""
    return {cls.__name__ for cls in type(module).__mro__}


def wrapped_child(module: nn.Module) -> str | None:
    """Return the name under which a wrapper has the module inside; None for what is no wrapper."""
    for name in class_names(module) & _WRAPPERS.keys():
        if isinstance(module._modules.get(_WRAPPERS[name]), nn.Module):
            return _WRAPPERS[name]
    if len(module._modules) == 1 and (only := next(iter(module._modules))) in OF_WRAPPERS:
        return only
    return None


def adapted_children(module: nn.Module) -> tuple[str, ...]:
    """Return the names under which a module of PEFT has the layer that it stands for, or trained copies of it."""
    names = class_names(module)
    return next((children for name, children in _ADAPTED.items() if name in names), ())


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers, and the layer that adapters stand for."""
    while True:
        child = wrapped_child(module) or next(iter(adapted_children(module)), None)
        inner = None if child is None else module._modules.get(child)
        if inner is None:
            return module
        module = inner


def models_within(module: nn.Module) -> set[str]:
    """Return the names of those children of a model that are whole models too.

    That is the only child that has parameters: a model that adds a loss or metrics to another. All children of a
    LightningModule are models, and what PEFT has adapted.
    """
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return set()
    with_parameters = {name for name, child in module._modules.items() if child is not None and _has_parameters(child)}
    if len(with_parameters) == 1 or class_names(module) & _CARRIERS:
        return with_parameters
    return set()


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
