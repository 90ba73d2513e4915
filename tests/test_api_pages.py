"""The API pages have every public name, and say of every option what it allows."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import orthon
from orthon.algorithms import RULES
from orthon.optimizers.common import SHARED, NamedOptimizer

MAKERS = (orthon.Dion, orthon.Muon, orthon.NorMuon, orthon.Dion2, orthon.Dion3)
API = Path(__file__).parents[1] / "docs" / "api"


@pytest.fixture
def extension() -> Any:
    """Return what writes into the pages, where the packages are that make them."""
    return pytest.importorskip("scripts.griffe_flat_signatures", exc_type=ImportError)


def test_every_public_name_is_on_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
    named = {f"orthon.{name}" for name in orthon.__all__ if not inspect.ismodule(getattr(orthon, name))}
    named |= {f"orthon.integrations.{name}" for name in orthon.integrations.__all__}
    assert named - {"orthon.NorDion2"} <= shown  # an alias, as its page says


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_options_say_what_they_allow(make: type[NamedOptimizer], extension: Any) -> None:
    text = extension.with_ranges(inspect.getdoc(make), make.algorithm)
    for name, option in RULES[make.algorithm].options.items():
        if name != "lr" and name not in SHARED:
            assert f"    {name}: ({option.allowed}) " in text


def test_shared_options_say_their_defaults(extension: Any) -> None:
    text = extension.with_ranges(inspect.getdoc(orthon.optimizers.CommonOptions), "dion", defaults=True)
    assert "weight_decay: (a number or a one-element tensor >= 0; default 0.01) " in text
    assert all(re.search(rf"^ +{name}: \(.*default .*\) ", text, flags=re.MULTILINE) for name in SHARED)
