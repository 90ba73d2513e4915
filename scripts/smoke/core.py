"""Run by the Python of an environment with torch and the wheel: where the package lies, a step of each optimizer."""

import sys
from importlib.metadata import requires
from pathlib import Path

import torch
from torch import nn

import orthon

OPTIMIZERS = (orthon.Dion, orthon.Dion2, orthon.Dion3, orthon.Muon, orthon.NorMuon)


def check_package(version: str) -> None:
    """The package is the installed one, of the version that the wheel's name tells, and needs torch alone."""
    place = Path(orthon.__file__).parent
    assert place.is_relative_to(sys.prefix), place
    assert (place / "py.typed").is_file()
    assert orthon.__version__ == version, orthon.__version__
    needs = [line for line in requires("orthon") or () if "extra ==" not in line]
    assert len(needs) == 1, needs
    assert needs[0].startswith("torch>="), needs


def check_step(optimizer_class: type[orthon.MixedOptimizer]) -> None:
    """A step changes every weight and lowers the loss, and the state goes to another optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 16), nn.Linear(16, 10))
    optimizer = optimizer_class.for_model(model, lr=0.02)
    tokens = torch.arange(10)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(tokens), tokens)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        before = [weight.detach().clone() for weight in model.parameters()]
        optimizer.step()
        assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert losses[-1] < losses[0], losses
    optimizer_class.for_model(model, lr=0.02).load_state_dict(optimizer.state_dict())
    assert str(orthon.explain(optimizer))


check_package(sys.argv[1])
for each in OPTIMIZERS:
    check_step(each)
print(f"orthon {orthon.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
