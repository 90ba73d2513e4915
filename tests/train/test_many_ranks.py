"""The trainer under torchrun: real processes, the curves of one process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orthon.train.commands.main import main
from orthon.train.errors import UserError
from orthon.train.settings.mesh import MeshConfig

OPTIMIZERS = ("dion", "adamw")
OTHERS = ("dion2", "dion3", "muon", "normuon")

# dp_replicate, dp_shard, tp
LAYOUTS = {
    "DDP": (4, 1, 1),
    "FSDP": (1, 4, 1),
    "HSDP": (2, 2, 1),
    "TP and FSDP": (1, 2, 2),
    "TP and replicas": (2, 1, 2),
    "TP": (1, 1, 4),
}

# Widths that the ranks cannot divide evenly, and the ways to save memory.
ODD = ["--model.hidden-size=36", "--model.heads=2", "--model.kv-heads=2", "--model.ffn=54"]
ODD += ["--accumulation=2", "--activation-checkpointing=True"]


@pytest.fixture(scope="module")
def words(tiny: list[str]) -> list[str]:
    """Flags of a tiny run that four ranks can share, with a number of validation sequences that they cannot."""
    return [*tiny, "--model.heads=4", "--model.kv-heads=4", "--batch-size=8", "--validation-sequences=9", "--steps=50"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, words: list[str]):
    """The directory of the run of one process with some more flags."""
    done: dict[tuple[str, ...], Path] = {}

    def run(*more: str) -> Path:
        if more not in done:
            done[more] = tmp_path_factory.mktemp("alone") / "run"
            assert main(["train", *words, *more, f"--out={done[more]}"]) == 0
        return done[more]

    return run


def start(processes: int, *words: object) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*launcher, "-m", "orthon", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def torchrun(processes: int, *words: object) -> str:
    """Carry out a command that succeeds, and return what it says."""
    process = start(processes, *words)
    said, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, complaints
    assert "Warning" not in complaints
    return said


def complaint(processes: int, *words: object) -> str:
    """Carry out a command that fails, and return the one line that it says about it."""
    process = start(processes, *words)
    _, complaints = process.communicate(timeout=200)
    assert process.returncode == 1  # torchrun's own; it tells those of the processes
    assert set(re.findall(r"exitcode +: (\S+)", complaints)) <= {"2", "-15"}  # it ends those that are still there
    [line] = [line for line in complaints.splitlines() if line.startswith("orthon: ")]
    return line


def mesh(sizes: tuple[int, int, int]) -> list[str]:
    names = ("dp-replicate", "dp-shard", "tp")
    return [f"--mesh.{name}={size}" for name, size in zip(names, sizes, strict=True)]


def assert_same_curve(many: list[dict[str, float]], one: list[dict[str, float]]) -> None:
    assert [set(record) for record in many] == [set(record) for record in one]
    for key in many[0].keys() | {"val_loss"}:
        curves = [[record[key] for record in records if key in record] for records in (many, one)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-3), key


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_curve_of_one_process(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    choice = f"--optimizer.name={optimizer}"
    said = torchrun(4, "train", *words, choice, *mesh(LAYOUTS[layout]), f"--out={tmp_path / 'run'}")
    assert said.count("held-out loss") == 1
    one = alone(choice)
    assert_same_curve(numbers(tmp_path / "run"), numbers(one))
    assert (tmp_path / "run" / "sample.txt").read_text() == (one / "sample.txt").read_text()


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        pytest.param(optimizer, layout, marks=() if (optimizer, layout) == ("muon", "FSDP") else pytest.mark.long)
        for optimizer in OTHERS
        for layout in ("DDP", "FSDP", "HSDP", "TP and FSDP")
    ],
)
def test_the_curve_of_one_process_with_polar_factors(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    # Exact: 16 bits, which are the default where they are fast, amplify the rounding of gradients to 1e-2.
    more = [f"--optimizer.name={optimizer}", "--steps=20", "--optimizer.options", "polar=svd"]
    torchrun(4, "train", *words, *more, *mesh(LAYOUTS[layout]), f"--out={tmp_path / 'run'}")
    assert_same_curve(numbers(tmp_path / "run"), numbers(alone(*more)))


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["dion", "dion2", "dion3"])
@pytest.mark.parametrize("layout", ["DDP", "HSDP", "TP and replicas"])
def test_the_curve_of_one_process_with_compressed_synchronization(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    more = [f"--optimizer.name={optimizer}"]
    if optimizer != "dion":
        more += ["--optimizer.options", "selection=random", "polar=svd"]
    compressed = [*more, "--optimizer.compressed-sync", *mesh(LAYOUTS[layout])]
    torchrun(4, "train", *words, *compressed, f"--out={tmp_path / 'run'}")
    many, one = numbers(tmp_path / "run"), numbers(alone(*more))
    for record in [*many, *one]:
        del record["grad_norm"]  # that of the averages, which never exist
    assert_same_curve(many, one)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["DDP", "FSDP", "TP and FSDP"])
def test_uneven_parts(tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str) -> None:
    more = [*ODD, f"--optimizer.name={optimizer}"]
    torchrun(4, "train", *words, *more, *mesh(LAYOUTS[layout]), f"--out={tmp_path / 'run'}")
    assert_same_curve(numbers(tmp_path / "run"), numbers(alone(*more)))


@pytest.mark.parametrize("optimizer", ["dion", pytest.param("adamw", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "layout",
    ["TP and FSDP", *(pytest.param(layout, marks=pytest.mark.long) for layout in LAYOUTS if layout != "TP and FSDP")],
)
def test_qk_clip(tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str) -> None:
    threshold = 0.05
    more = [
        "--model.heads=8",
        f"--qk-clip={threshold}",
        f"--optimizer.name={optimizer}",
        "--accumulation=2",
        "--steps=20",
    ]
    torchrun(4, "train", *words, *more, *mesh(LAYOUTS[layout]), f"--out={tmp_path / 'run'}")
    many, one = numbers(tmp_path / "run"), numbers(alone(*more))
    assert_same_curve(many, one)
    assert one[0]["max_logit"] > 20 * threshold  # clipped at once, and again and again
    assert all(threshold < record["max_logit"] < 4 * threshold for record in [*many[2:], *one[2:]])


@pytest.mark.long
@pytest.mark.parametrize("layout", ["DDP", "FSDP", "TP and FSDP"])
def test_qk_clip_of_uneven_parts(tmp_path: Path, words: list[str], alone, numbers, layout: str) -> None:
    more = [*ODD, "--qk-clip=0.05", "--steps=20"]
    torchrun(4, "train", *words, *more, *mesh(LAYOUTS[layout]), f"--out={tmp_path / 'run'}")
    assert_same_curve(numbers(tmp_path / "run"), numbers(alone(*more)))


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        *((optimizer, "TP and FSDP") for optimizer in OPTIMIZERS),
        *(pytest.param(optimizer, "TP and FSDP", marks=pytest.mark.long) for optimizer in OTHERS),
        *(
            pytest.param(optimizer, layout, marks=pytest.mark.long)
            for optimizer in OPTIMIZERS
            for layout in ("DDP", "HSDP", "TP and replicas")
        ),
    ],
)
def test_from_one_process_to_many_and_back(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    """Weights, optimizer state and order of the text survive both changes, so the curve does."""
    more = [f"--optimizer.name={optimizer}", "--schedule.decay=constant", "--schedule.warmup=0"]
    if optimizer in OTHERS:  # 16-bit polar factors amplify rounding, by which Dion2 then chooses other rows
        more += ["--optimizer.options", "polar=svd"]
    run = tmp_path / "run"
    assert main(["train", *words, *more, "--steps=20", f"--out={run}"]) == 0
    torchrun(4, "train", f"--resume={run}", "--steps=30", *mesh(LAYOUTS[layout]))
    assert main(["train", f"--resume={run}", "--steps=50", *mesh((1, 1, 1))]) == 0
    assert_same_curve(numbers(run), numbers(alone(*more)))


@pytest.mark.long
@pytest.mark.parametrize("layout", ["DDP", "TP and replicas"])
def test_compressed_state_is_consolidated(tmp_path: Path, words: list[str], alone, numbers, layout: str) -> None:
    more = ["--schedule.decay=constant", "--schedule.warmup=0"]
    run, compressed = tmp_path / "run", ["--optimizer.compressed-sync", *mesh(LAYOUTS[layout])]
    torchrun(4, "train", *words, *more, "--steps=20", "--save-every=5", *compressed, f"--out={run}")
    torchrun(4, "train", f"--resume={run}", "--steps=30")
    assert main(["train", f"--resume={run}", "--steps=50", "--optimizer.no-compressed-sync", *mesh((1, 1, 1))]) == 0
    many, one = numbers(run), numbers(alone(*more))
    for record in [*many, *one]:
        del record["grad_norm"]  # that of the averages, which never exist
    assert_same_curve(many, one)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["FSDP", "TP and FSDP"])
def test_going_on_with_uneven_parts(tmp_path: Path, words: list[str], alone, numbers, layout: str) -> None:
    more = [*ODD, "--schedule.decay=constant", "--schedule.warmup=0"]
    run = tmp_path / "run"
    assert main(["train", *words, *more, "--steps=10", f"--out={run}"]) == 0
    torchrun(4, "train", f"--resume={run}", "--steps=20", *mesh(LAYOUTS[layout]))
    assert main(["train", f"--resume={run}", "--steps=50", *mesh((1, 1, 1))]) == 0
    assert_same_curve(numbers(run), numbers(alone(*more)))


@pytest.mark.long
def test_a_signal_stops_all_ranks_at_the_same_step(tmp_path: Path, words: list[str], alone, numbers) -> None:
    run = tmp_path / "run"
    process = start(2, "train", *words, "--optimizer.name=adamw", "--mesh.dp-shard=2", f"--out={run}")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("5/50"):
            process.send_signal(signal.SIGTERM)  # torchrun passes it on
            break
    said, complaints = process.communicate(timeout=100)
    assert f"go on with: orthon train --resume {run}" in said, complaints
    done = len(numbers(run))
    assert 5 <= done < 50
    assert (run / "checkpoints" / f"step-{done:08d}").exists()
    assert main(["train", f"--resume={run}", *mesh((1, 1, 1))]) == 0
    assert_same_curve(numbers(run), numbers(alone("--optimizer.name=adamw")))


@pytest.mark.long
def test_compare(tmp_path: Path, words: list[str]) -> None:
    words = ["compare", *words, "--steps=10", "--optimizers", "torch-muon", "adamw", f"--out={tmp_path / 'out'}"]
    words = [word for word in words if not word.startswith("--validate-every")]
    said = torchrun(2, *words, "--mesh.dp-shard=2")
    assert said.count("2 runs, 0 already done") == said.count("results in") == 1
    assert (tmp_path / "out" / "comparison.png").exists()
    assert "2 runs, 2 already done" in torchrun(2, *words, "--mesh.dp-shard=2")
    assert "mesh.dp_shard 2, not 1; choose another --out" in complaint(2, *words)


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
            "--optimizer.name=dion --optimizer.compressed-sync --mesh.dp-shard=2",
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
        ("--optimizer.compressed-sync", "mesh.dp_replicate is 1: there is nothing to compress"),
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
