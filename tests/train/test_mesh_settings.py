"""How many processes a command takes, and what it says if there are others: once, and in one line."""

from pathlib import Path

import pytest

from orthon.train.errors import UserError
from orthon.train.settings.mesh import MeshConfig
from tests.train.support.torchrun import complaint


@pytest.fixture(scope="module")
def words(tiny: list[str]) -> list[str]:
    """Flags of a tiny run that two ranks can share."""
    return [*tiny, "--model.heads=4", "--model.kv-heads=4", "--batch-size=8"]


def test_bad_settings_are_told_once(tmp_path: Path, words: list[str]) -> None:
    flags = ["--model.heads=2", "--model.kv-heads=1", "--mesh.tp=2", f"--out={tmp_path / 'run'}"]
    said = complaint(2, "train", *words, *flags)
    assert said == "orthon: mesh.tp must divide model.kv_heads (1) but is 2"
    assert not any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mesh.dp-shard=3", "(1 × 3 × 1) must be the number of processes but is 3, and torchrun has started 2"),
        ("--batch-size=9", "batch_size must be a multiple of mesh.dp_replicate × mesh.dp_shard × accumulation"),
        ("--accumulation=8", "(2 × 1 × 8) but is 8"),
        ("--steps=0", "steps must be greater than or equal to 1 but is '0'"),
        (
            "--optimizer.compressed-sync --optimizer.options tail=0 --mesh.dp-shard=2",
            "optimizer.compressed_sync is set, but mesh.dp_replicate is 1: there is nothing to compress",
        ),
    ],
)
def test_bad_settings(tmp_path: Path, words: list[str], flags: str, message: str) -> None:
    assert message in complaint(2, "train", *words, *flags.split(), f"--out={tmp_path / 'run'}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mesh.tp=0", "orthon: mesh.tp must be greater than or equal to 1 but is '0'"),
        (
            "--mesh.tp=2 --mesh.dp-shard=2",
            "(1 × 2 × 2) takes 4 processes, but this is the only one: torchrun --nproc-per-node 4 -m orthon",
        ),
        (
            "--optimizer.compressed-sync --optimizer.options tail=0",
            "mesh.dp_replicate is 1: there is nothing to compress",
        ),
        ("--optimizer.compressed-sync --optimizer.name=lion", "only dion, dion2 and dion3 have it"),
        ("--optimizer.compressed-sync --optimizer.name=dion2", "dion2 needs all gradients to choose its rows"),
        (
            "--optimizer.compressed-sync --optimizer.name=dion3 --optimizer.options selection=random",
            "mesh.dp_replicate is 1: there is nothing to compress",
        ),
        ("--optimizer.options replicas=2", "optimizer.options must not contain replicas"),
    ],
)
def test_bad_settings_of_one_process(tmp_path: Path, words: list[str], fails, flags: str, message: str) -> None:
    assert message in fails("train", *words, *flags.split(), "--out", tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_without_torchrun(monkeypatch: pytest.MonkeyPatch, fails) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "WORLD_SIZE is 2, but torchrun did not start this process: " in fails("train")


@pytest.mark.parametrize(
    ("given", "processes", "expected"),
    [
        ((None, 1, 1), 1, (1, 1, 1)),
        ((None, 1, 1), 8, (8, 1, 1)),
        ((None, 2, 2), 8, (2, 2, 2)),
        ((None, 4, 2), 8, (1, 4, 2)),
        ((2, 4, 1), 8, (2, 4, 1)),
        ((None, 3, 1), 8, None),
        ((None, 16, 1), 8, None),
        ((1, 4, 1), 8, None),
        ((8, 2, 1), 8, None),
    ],
)
def test_mesh_sizes(given: tuple[int | None, int, int], processes: int, expected: tuple[int, int, int] | None) -> None:
    config = MeshConfig(dp_replicate=given[0], dp_shard=given[1], tp=given[2])
    if expected is None:
        with pytest.raises(UserError, match=r"mesh.dp_replicate × mesh.dp_shard × mesh.tp"):
            config.sizes(processes)
    else:
        assert config.sizes(processes) == expected
