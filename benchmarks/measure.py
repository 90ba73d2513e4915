"""One optimizer on one case: checked, then timed."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks import checks
from benchmarks.cases import SIZE, Case, parameters
from benchmarks.contenders import Contender
from benchmarks.counts import counts
from benchmarks.results import Results, Row, name_of, reason
from benchmarks.roofline import Roofline
from benchmarks.timing import Budget, Work, copies_beyond_cache, in_a_row, in_turns, once, peak_memory
from orthon.sharding import local

# A step that takes more seconds than this is not begun on a CPU: some products of 16-bit numbers take slow paths there,
# by hundreds of times.
_LONGEST = 60.0


# Cases of more numbers than this hold memory worth freeing at once.
_LARGE = 1 << 20


class TooSlowError(Exception):
    """A step would take so long that the others would have no time."""


@dataclass(frozen=True)
class Setting:
    """How measurements are made.

    Attributes:
        roofline: of the device.
        repeats: of each step, at most.
        seconds: for each optimizer, about.
    """

    roofline: Roofline
    repeats: int
    seconds: float

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.roofline.device


def side_by_side(
    contender: Contender,
    beside: Contender,
    case: Case,
    *,
    dtype: torch.dtype,
    setting: Setting,
    others: Mapping[str, float],
) -> Row:
    """Measure an optimizer in turns with another one, on a CPU.

    Args:
        contender: the one of the row.
        beside: the other, or the same, which is measured once then.
        case: what they update, each its own weights with the same gradients.
        dtype: of weights and state.
        setting: how.
        others: more to be compared with, and what they take in turns with the same other one, relative to it.

    Raises:
        WrongStepError: if a step is not what it should be.
        TooSlowError: if it would take minutes.
    """
    _refuse_slow(contender, case, dtype, setting.device)
    row = _checked_row(contender, case, dtype=dtype, setting=setting)
    params = parameters(case, dtype=dtype, device=setting.device)
    optimizer = contender.optimizer(params)
    before = [checks.sample(local(param)) for param in params]
    first = once(optimizer.step, setting.device)
    works: dict[str, Work] = {contender.name: optimizer.step}
    if beside.name != contender.name:
        other = [nn.Parameter(param.detach().clone()) for param in params]
        for mine, theirs in zip(other, params, strict=True):
            mine.grad = theirs.grad
        works[beside.name] = beside.optimizer(other).step
        works[beside.name]()
    taken = in_turns(works, repeats=setting.repeats, seconds=setting.seconds)
    checks.check_moved([local(param) for param in params], before, contender.name)
    ratio = statistics.median(taken[contender.name]) / statistics.median(taken[beside.name])
    ratios = {name: ratio / of_beside for name, of_beside in others.items()}
    return _timed(row, first, taken[contender.name], {**ratios, beside.name: ratio}, _bytes_of_state(optimizer))


class Sets:
    """Parameters of a case that optimizers update one after the other, several times where a cache would hold them.

    Args:
        case: what is updated.
        dtype: of weights and gradients.
        device: where.
    """

    def __init__(self, case: Case, *, dtype: torch.dtype, device: torch.device) -> None:
        self.case, self.dtype = case, dtype
        touched = 3 * case.numbers // case.ranks * dtype.itemsize  # weights, gradients, momentum
        copies = copies_beyond_cache(touched, device)
        self.params = [parameters(case, dtype=dtype, device=device) for _ in range(copies)]

    def draw_weights(self) -> None:
        """Give the weights new values. After many steps they have grown so large that bfloat16 rounds a step away."""
        for params in self.params:
            for param in params:
                local(param.detach()).normal_(std=SIZE)


def in_row(contender: Contender, sets: Sets, setting: Setting, baselines: Mapping[str, Row]) -> Row:
    """Measure an optimizer by itself, steps in a row.

    Args:
        contender: the one.
        sets: what it updates; its weights are drawn anew.
        setting: how.
        baselines: rows of the same case to compare with, by name.

    Raises:
        WrongStepError: if a step is not what it should be.
    """
    case, device = sets.case, setting.device
    row = _checked_row(contender, case, dtype=sets.dtype, setting=setting)
    sets.draw_weights()
    optimizers = [contender.optimizer(params) for params in sets.params]
    before = [checks.sample(local(param)) for param in sets.params[0]]
    first = once(optimizers[0].step, device)
    for optimizer in optimizers[1:]:
        optimizer.step()
    with peak_memory(device) as peak:
        optimizers[0].step()
    steps: list[Work] = [optimizer.step for optimizer in optimizers]
    taken = in_a_row(steps, device, repeats=setting.repeats, seconds=setting.seconds)
    if case.ranks == 1:  # with nobody at the other end, numbers mean nothing
        checks.check_moved([local(param) for param in sets.params[0]], before, contender.name)
    median = statistics.median(taken)
    ratios = {name: median / other.seconds for name, other in baselines.items() if other.seconds}
    row = _timed(row, first, taken, ratios, _bytes_of_state(optimizers[0]))
    return replace(row, peak_bytes=peak[0] if peak else None)


def attempt(
    results: Results, contender: Contender, case: Case, dtype: torch.dtype, work: Callable[[], Row], *, budget: Budget
) -> None:
    """Keep the row that `work` returns, or why there is none: one that fails leaves the others their turns."""
    if not budget.left:
        results.add(_empty_row(contender, case, dtype, note="no time was left"))
        return
    try:
        row = work()
    except Exception as error:
        row = _empty_row(contender, case, dtype, note=reason(error))
    results.add(row)
    if case.numbers > _LARGE:  # optimizers are parts of cycles, and would stay until there is no room for the next
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refuse_slow(contender: Contender, case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Raise a TooSlowError by a step with sides that are an eighth as long, which takes a 512th for large products."""
    if dtype == torch.float32 or max(map(max, case.shapes)) < 1024:
        return
    eighth = replace(case, shapes=tuple((m // 8, n // 8) for m, n in case.shapes))
    params = parameters(eighth, dtype=dtype, device=device)
    optimizer = contender.optimizer(params)
    optimizer.step()
    foreseen = 512 * once(optimizer.step, device)
    if foreseen > _LONGEST:
        raise TooSlowError(f"a step would take about {foreseen:.0f} s")


def _empty_row(contender: Contender, case: Case, dtype: torch.dtype, *, note: str) -> Row:
    """Return a row of an optimizer that was not measured."""
    return Row(case.name, contender.name, name_of(dtype), len(case.shapes), note=note)


def _checked_row(contender: Contender, case: Case, *, dtype: torch.dtype, setting: Setting) -> Row:
    least = setting.roofline.seconds(counts(contender, case, dtype=dtype, device=setting.device))
    row = replace(_empty_row(contender, case, dtype, note=""), roofline_seconds=least)
    if not contender.checked:
        return replace(row, note="not checked: its formulas are its own")
    if case.ranks > 1:
        return replace(row, note="nothing is sent or received")
    return replace(row, error=checks.check(contender, case, dtype=dtype, device=setting.device))


def _timed(row: Row, first: float, taken: Sequence[float], ratios: dict[str, float], state_bytes: int) -> Row:
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return replace(
        row,
        seconds=median,
        first_seconds=first,
        quartiles=(low, high),
        repeats=len(taken),
        ratios=ratios,
        state_bytes=state_bytes,
    )


def _bytes_of_state(optimizer: torch.optim.Optimizer) -> int:
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(local(value).nbytes for value in kept)
