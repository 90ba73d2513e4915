"""Orthon's optimizers in the Trainer of transformers, on two processes."""

from pathlib import Path

import pytest
import torch

import orthon
from orthon.integrations import hf
from tests.integrations.support.processes import run
from tests.integrations.support.tiny import logged, trainer

NAMES = ["Dion", "Muon", "Dion3"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(kind: str, tmp_path: Path) -> None:
    results = run("trainer_ranks", tmp_path, kind, *NAMES)
    for name in NAMES:
        alone = trainer(tmp_path / "alone", hf(getattr(orthon, name), lr=0.02), gradient_accumulation_steps=2)
        alone.train()
        for each in results:
            result = each[name]
            assert result["replicas"] == (kind == "ddp")  # DTensors tell themselves who trains them
            assert result["sharded"] == (0 if kind == "ddp" else len(list(alone.model.parameters())))
            for key, value in alone.model.state_dict().items():
                torch.testing.assert_close(result["weights"][key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")
                assert torch.equal(result["weights"][key], result["weights again"][key]), f"{name}: {key}"
                assert torch.equal(result["weights"][key], results[0][name]["weights"][key]), f"{name}: {key}"
        first = results[0][name]  # only the first process logs
        assert first["losses again"] == first["losses"]
        assert first["losses"] == pytest.approx(logged(alone, "loss"), rel=1e-4)
        assert first["rates"] == logged(alone, "learning_rate")
