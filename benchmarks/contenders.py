"""Who is measured: Orthon's rules, torch's optimizers, plain loops, and peer packages that are installed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks import plain_loops
from orthon import Dion, Dion2, Dion3, Muon, NorMuon

Params = Sequence[nn.Parameter]

TORCH_MUON = "torch.optim.Muon"
ADAMW = "torch.optim.AdamW fused"


@dataclass(frozen=True)
class Contender:
    """An optimizer with its settings.

    Attributes:
        name: for tables.
        rule: "dion", "muon", "normuon", "dion2", "dion3" or "adamw": by which its work is counted, and checked.
        make: the class or function that makes it.
        options: for `make`.
        fraction: of the rank, or of the rows.
        newton_schulz: whether polar factors are found as torch does, by Jordan's polynomial of the matrix itself in
            bfloat16, instead of Orthon's way.
        checked: whether its step is known well enough for a reference in float64.
        graph_options: more options with which a step waits for nothing, so that a CUDA graph can hold it; None where
            there are none.
    """

    name: str
    rule: str
    make: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    fraction: float = 1.0
    newton_schulz: bool = False
    checked: bool = True
    graph_options: Mapping[str, Any] | None = None

    @property
    def product_dtype(self) -> torch.dtype | None:
        """In which Dion computes its large products, if not in that of its state."""
        return self.options.get("product_dtype")

    def optimizer(self, params: Params, **more: Any) -> torch.optim.Optimizer:
        """Return the optimizer over parameters, with more options than its own."""
        return self.make(list(params), **{"lr": 0.01, **self.options, **more})


def _orthon(name: str, make: Callable[..., torch.optim.Optimizer], **options: Any) -> Contender:
    fraction = options.get("rank_fraction", options.get("fraction", 1.0))
    return Contender(
        name, make.__name__.lower(), make, options, fraction, graph_options={"nonfinite": "skip", "capturable": True}
    )


def _dion(inverse: int, suffix: str = "", **options: Any) -> Contender:
    rank = f"1/{inverse}" if inverse > 1 else "1"
    return _orthon(f"Dion {rank}{suffix}", Dion, rank_fraction=1 / inverse, **options)


FAMILY: tuple[Contender, ...] = (
    *(_dion(inverse) for inverse in (1, 4, 16, 64)),
    _orthon("Muon", Muon),
    _orthon("NorMuon", NorMuon),
    _orthon("Dion2 1/4", Dion2, fraction=1 / 4),
    _orthon("Dion3 1/4", Dion3, fraction=1 / 4),
)

# Without a tail, with error feedback and unit columns.
OF_THE_PAPER = (_dion(4, " of the paper", **Dion.PAPER),)

# For float32 state.
ROUNDED = tuple(_dion(inverse, ", bf16 products", product_dtype=torch.bfloat16) for inverse in (4, 16))

TORCH: tuple[Contender, ...] = (
    Contender(ADAMW, "adamw", torch.optim.AdamW, {"fused": True}, graph_options={"capturable": True}),
    Contender(TORCH_MUON, "muon", torch.optim.Muon, newton_schulz=True, graph_options={}),
)

PLAIN_LOOPS: tuple[Contender, ...] = (
    Contender("plain loop Dion 1/4", "dion", plain_loops.Dion, {"rank_fraction": 1 / 4}, 1 / 4),
    Contender("plain loop Muon", "muon", plain_loops.Muon, newton_schulz=True),
    Contender("plain loop NorMuon", "normuon", plain_loops.NorMuon, newton_schulz=True),
    Contender("plain loop Dion2 1/4", "dion2", plain_loops.Dion2, {"fraction": 1 / 4}, 1 / 4, newton_schulz=True),
    Contender("plain loop Dion3 1/4", "dion3", plain_loops.Dion3, {"fraction": 1 / 4}, 1 / 4, newton_schulz=True),
)

# Module, class in it, and what it is to be compared with. They are called with the parameters and lr alone, or with the
# options here; their variants of the rules differ, so that no reference of ours is right for them.
_PEERS: tuple[tuple[str, str, str, float, Mapping[str, Any]], ...] = (
    ("dion", "Dion", "dion", 1 / 4, {"rank_fraction": 1 / 4}),
    ("dion", "Muon", "muon", 1.0, {}),
    ("dion", "NorMuon", "normuon", 1.0, {}),
    ("dion", "Dion2", "dion2", 1 / 4, {"fraction": 1 / 4}),
    ("muon", "SingleDeviceMuon", "muon", 1.0, {}),
    ("emerging_optimizers.orthogonalized_optimizers", "Muon", "muon", 1.0, {}),
)


def peers() -> Iterator[Contender]:
    """Yield the optimizers of peer packages that are installed here; none is needed."""
    for module, name, rule, fraction, options in _PEERS:
        try:
            if find_spec(module.partition(".")[0]) is None:
                continue
            make = getattr(import_module(module), name, None)
        except Exception as error:  # a package that does not import is as good as absent, but that is said
            print(f"{module}: is installed, but does not import: {error}")
            continue
        if make is not None:
            label = f"{module.split('.')[0]}.{name}" + (f" {_inverse(fraction)}" if fraction < 1 else "")
            yield Contender(label, rule, make, options, fraction, newton_schulz=True, checked=False)


def _inverse(fraction: float) -> str:
    return f"1/{round(1 / fraction)}"


def essential(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """Return few of them, one for each kind of code that a suite has, for a quick look at whether it runs."""
    return tuple(c for c in contenders if c.name in (ADAMW, TORCH_MUON, "Dion 1/4", "Muon", "Dion2 1/4"))


def named(contenders: Sequence[Contender], *names: str) -> tuple[Contender, ...]:
    """Return those of these names, in the order of the names."""
    by_name = {contender.name: contender for contender in contenders}
    return tuple(by_name[name] for name in names)
