"""The torch.optim.Optimizer: param groups, state, and what a step is."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from orthon.algorithms.options import choice, flag, number_or_none
from orthon.machines import Machine, named_machine
from orthon.optimizers.beside_steps import make_equal, warn_of_no_gradients
from orthon.optimizers.groups import check_defaults, check_iterable, completed, name_empty_groups, shown_defaults
from orthon.optimizers.known import KnownParameters
from orthon.optimizers.scaler_flag import step_decides
from orthon.optimizers.wrapped import own_optimizer
from orthon.saving.loading import fit_state
from orthon.saving.options import written
from orthon.sharding import Ranks
from orthon.sharding.replicas import replica_group
from orthon.step.batches import Wave
from orthon.step.capture import Capture, check_ranks
from orthon.step.gates import Gates, nonfinite_error, shut_gates
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member
from orthon.step.options import OptionCheck, rule_of_others
from orthon.step.plan import Plan, Planner

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]

_NONFINITE = choice("raise", "skip")
_WAVE_MEMORY = number_or_none("> 0", lambda v: v > 0)

# Of a copy, besides what torch copies.
_KEPT = ("nonfinite", "sync_gradients", "machine", "wave_memory", "_check", "_skipped", "_unconsolidated")


class MixedOptimizer(torch.optim.Optimizer):
    """An optimizer whose param groups each name the algorithm that updates them.

    It keeps torch's contract: schedulers, closures, hooks, `state_dict` and `load_state_dict`. A parameter
    without a gradient is skipped. Under a torch.amp.GradScaler an infinity or a NaN on one rank leaves the step out on
    all of them, whatever `nonfinite` says, and is decided on the device.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        algorithm: of the groups that name none.
        nonfinite: what to do at a gradient with an infinity or a NaN, before anything is changed.
            "raise": a FloatingPointError that names the parameters; costs a synchronization on a GPU.
            "skip": decide on the device, leave all weights and state as they are, and count.
        options: values for the groups that do not set them, each where the group's algorithm has it.
        replicas: the ranks that train copies of these parameters on other data, where the parameters' meshes do not
            tell: those of DistributedDataParallel, or a data-parallel axis that fully_shard does not see; a process
            group, a device mesh with one axis, or "world" for all processes. They share work, and
            `sync_gradients` averages over them.
        sync_gradients: average the gradients of the replicas, which nothing else does then; matrix rules average their
            factors where these are smaller (compressed synchronization). A missing gradient counts as zero.
        machine: on which the processes run, where several work together: a name of `orthon.machines.MACHINES` or a
            `Machine`. It decides who does what, and nothing about the result. None looks at the device.
        wave_memory: bytes that a process may take for the whole matrices on which it works at a time, where several
            work together; one matrix, if that is more. None is 1/16 of the device's. Three are under way at a time.
        others: the algorithm for those parameters of a group without an algorithm that are no matrices: vectors, and
            what has more than two dims. They have the options of their group. None refuses them.

    Attributes:
        defaults: the options of groups that set none, as values that JSON has. "betas" is not among them, so that
            torch's schedulers cycle "momentum" in all groups. AdamW and Lion take it for their first beta.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
    """

    def __init__(
        self,
        params: Params,
        *,
        algorithm: str,
        options: Mapping[str, Any],
        nonfinite: str = "raise",
        replicas: ProcessGroup | DeviceMesh | str | None = None,
        sync_gradients: bool = False,
        machine: Machine | str | None = None,
        wave_memory: float | None = None,
        others: str | None = None,
    ) -> None:
        owner = type(self).__name__
        self.nonfinite = _NONFINITE.check("nonfinite", nonfinite, owner)
        self._skipped: Tensor | None = None
        self._replicas = replica_group(replicas, owner)
        self.sync_gradients = flag(False).check("sync_gradients", sync_gradients, owner)
        if sync_gradients and replicas is None:
            raise ValueError(f"{owner}: sync_gradients=True averages over replicas=..., but replicas is None")
        self.wave_memory = _WAVE_MEMORY.check("wave_memory", wave_memory, owner)
        self.machine = named_machine(machine, owner)
        given = {"algorithm": algorithm, **check_defaults(algorithm, options, owner)}
        if others is not None:
            rule_of_others(others, owner)
        self._check = OptionCheck(owner, given, nonfinite, others)
        self._beside: tuple[Ranks, torch.device] | None = None
        self._begin_anew()
        self._unconsolidated = set[Tensor]()  # whose momentum differs between replicas
        self._warned, self._known = False, KnownParameters()
        check_iterable(params, owner)
        super().__init__(cast(Any, params), shown_defaults(given))

    def _begin_anew(self) -> None:
        """Forget all that is known from the steps before."""
        self._planner = self._planner_for(self.machine)

    def _planner_for(self, machine: Machine | None) -> Planner:
        """Return what plans the steps, for a machine."""
        return Planner(
            self._replicas,
            sync_gradients=self.sync_gradients,
            check=self._check,
            machine=machine,
            wave_memory=self.wave_memory,
            beside=self._beside,
        )

    def work_beside(self, ranks: Ranks, device: torch.device) -> None:
        """Tell the ranks that hold shards of what is frozen. Plain parameters beside it are taken for copies there."""
        self._beside = ranks, device
        self._begin_anew()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a torch.amp.GradScaler is to call `step` in any case, with `found_inf` and `grad_scale` set."""
        return step_decides(self, sys._getframe(1))

    @property
    def skipped_steps(self) -> int:
        """How many steps `nonfinite="skip"` or a gradient scaler has left out; asking synchronizes with the device."""
        return 0 if self._skipped is None else int(self._skipped)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options for them; everything is checked before anything changes."""
        group = completed(param_group, self.param_groups, self._check, self._known)
        name_empty_groups(self.param_groups, group)
        options = group.keys() | {"params"}
        super().add_param_group(group)
        for key in self.defaults.keys() - options:
            group.pop(key)  # torch fills in every default, also those that are another algorithm's

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # torch.compile would trace the lists of parameters and batches for seconds, and fail for some rules. The public
    # torch.compiler.disable would import the compiler together with Orthon.
    @_disable_dynamo
    @torch.inference_mode(mode=False)  # tensors that are made in inference mode cannot be changed outside of it
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._planner.plan(self.param_groups, self.state)
        capture = None
        if is_capturing():  # what must still hold at the end
            warm, owner = self._skipped is not None, type(self).__name__
            capture = Capture(self.param_groups, self.nonfinite, plan.members, self.state, warm=warm, owner=owner)
        scale = LossScale(getattr(self, "found_inf", None), getattr(self, "grad_scale", None))
        gates = self._gates(plan, scale)
        is_new = plan.is_new
        if not plan.sets and not self._warned and plan.members and all(m.grad is None for m in plan.members):
            self._warned = True
            warn_of_no_gradients(type(self).__name__)
        if self._known.frozen:
            self._known.warn_of_unfrozen(self.param_groups, type(self).__name__)
        if is_new:
            check_ranks(plan.members, type(self).__name__)
            plan.agreement.check_copies(plan.members)
        if self._unconsolidated:  # of those that are not compressed any more, as options have changed
            make_equal([m for m in plan.members if not m.differs], self.state, self._unconsolidated)
        self._planner.prepare(plan, self.state, gates)
        self._planner.carry_out(plan, self.state, gates, scale)
        # The step with which torch.distributed.checkpoint makes the state has zeros for gradients.
        if self.sync_gradients and not (is_new and plan.agreement.all(plan.members, plan.gradients.all_zero())):
            self._unconsolidated.update(member.param for member in plan.members if member.differs)
        if capture is not None:
            capture.check_state()
        return loss

    def consolidate(self) -> None:
        """Make the state of the replicas equal, which compressed synchronization leaves different.

        All ranks must call it, before `state_dict`. Training goes on with the same updates as without.
        """
        optimizer = own_optimizer(self, "consolidate")  # Lightning's wrappers take on this class
        make_equal(optimizer.members(), optimizer.state, optimizer._unconsolidated)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch does.

        Raises:
            RuntimeError: if compressed synchronization has left the state of the replicas different.
        """
        if self._unconsolidated:
            raise RuntimeError(
                f"{type(self).__name__}: the momentum differs between replicas, as sync_gradients=True leaves it; call "
                "optimizer.consolidate() on all ranks before state_dict()"
            )
        state_dict = super().state_dict()
        for index, (group, own) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=True)):
            written(group, self._check.cycled.of(own, index))
        return state_dict

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, each tensor of a matrix rule in the dtype in which it was saved.

        Options are those that were saved, but for `rank_fraction` and `rank_multiple_of`, to which the right factors
        are cut or extended, and for those that choose among ways to compute the same. Options that are missing remain
        as they are, but for those without which the rule was another one before they existed. Whole tensors are cut as
        the parameters are. Tensors that lie otherwise are made whole for that, on all ranks together.

        Raises:
            TypeError, ValueError: for a state that does not fit, which changes nothing; they name the entry.
        """
        optimizer = own_optimizer(self, "load_state_dict")  # not a wrapper of it, which would keep the new groups
        for before in optimizer._optimizer_load_state_dict_pre_hooks.values():
            changed = before(optimizer, state_dict)
            state_dict = state_dict if changed is None else changed
        groups, layouts, owner = optimizer.param_groups, optimizer._planner.layouts, type(optimizer).__name__
        optimizer.param_groups, loaded = fit_state(state_dict, groups, layouts, owner)
        optimizer.state.clear()
        optimizer.state.update(loaded)
        optimizer._begin_anew()
        optimizer._check.begin(optimizer.param_groups)
        optimizer._unconsolidated.clear()
        for after in optimizer._optimizer_load_state_dict_post_hooks.values():
            after(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        if self._replicas is not None:
            raise TypeError(
                f"{type(self).__name__}: cannot be copied or pickled with replicas=..., as process groups cannot; "
                "save state_dict() and load it into a new optimizer"
            )
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _KEPT}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._replicas, self._beside, self._warned, self._known = None, None, False, KnownParameters()
        self._begin_anew()

    def members(self) -> list[Member]:
        """Return the parameters of which this rank holds a shard, with gradients and layouts as they are now."""
        return self._planner.members(self.param_groups)

    def waves(self, members: Sequence[Member], *, machine: Machine | None = None) -> list[list[Wave]]:
        """Return the waves of a step, in sets that the same ranks communicate about.

        Args:
            members: the parameters that have gradients.
            machine: on which the ranks run; None for the optimizer's own.
        """
        return (self._planner if machine is None else self._planner_for(machine)).waves(members)

    def machine_of(self, member: Member) -> Machine:
        """Return the machine on which a parameter is, as far as plans are concerned."""
        return self._planner.machine(member.layout)

    def _gates(self, plan: Plan, scale: LossScale) -> Gates:
        """Return for each device whether to make the step; raise where gradients with infinities or NaNs are errors."""
        if self.nonfinite == "raise" and scale.found_inf is None:
            bad = plan.gradients.unusable()
            if not plan.agreement.is_alone:
                bad = plan.agreement.spread(plan.members, bad)
            if bad:
                raise nonfinite_error(bad, type(self).__name__)
            return {}
        gates, shut = shut_gates(plan.members, plan.gradients, plan.agreement, scale)
        if shut is not None:
            if self._skipped is None:
                self._skipped = torch.zeros((), dtype=torch.int64, device=shut.device)
            self._skipped += shut
        return gates


def is_capturing() -> bool:
    """Return whether the current stream is captured into a CUDA graph."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]
