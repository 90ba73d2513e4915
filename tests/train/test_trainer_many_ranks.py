"""The trainer under torchrun: real processes, the curves of one process."""

import math
import signal
from pathlib import Path

import pytest

from orthon.train.commands.main import main
from tests.train.support.torchrun import complaint, mesh, start, torchrun

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
    "FSDP of two": (1, 2, 1),
    "TP of two": (1, 1, 2),
}
OF_FOUR = [name for name, sizes in LAYOUTS.items() if math.prod(sizes) == 4]

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


def train_on(layout: str, *words: object) -> str:
    """Train on the processes of a layout."""
    sizes = LAYOUTS[layout]
    return torchrun(math.prod(sizes), "train", *words, *mesh(sizes))


def assert_same_curve(many: list[dict[str, float]], one: list[dict[str, float]]) -> None:
    assert [set(record) for record in many] == [set(record) for record in one]
    for key in many[0].keys() | {"val_loss"}:
        curves = [[record[key] for record in records if key in record] for records in (many, one)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-3), key


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", OF_FOUR)
def test_the_curve_of_one_process(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    choice = f"--optimizer.name={optimizer}"
    said = train_on(layout, *words, choice, f"--out={tmp_path / 'run'}")
    assert said.count("held-out loss") == 1
    one = alone(choice)
    assert_same_curve(numbers(tmp_path / "run"), numbers(one))
    assert (tmp_path / "run" / "sample.txt").read_text() == (one / "sample.txt").read_text()


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        ("muon", "FSDP of two"),
        *(
            pytest.param(optimizer, layout, marks=pytest.mark.long)
            for optimizer in OTHERS
            for layout in ("DDP", "FSDP", "HSDP", "TP and FSDP")
        ),
    ],
)
def test_the_curve_of_one_process_with_polar_factors(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    # Exact: 16 bits, which are the default where they are fast, amplify the rounding of gradients to 1e-2.
    more = [f"--optimizer.name={optimizer}", "--steps=20", "--optimizer.options", "polar=svd"]
    train_on(layout, *words, *more, f"--out={tmp_path / 'run'}")
    assert_same_curve(numbers(tmp_path / "run"), numbers(alone(*more)))


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["dion", "dion2", "dion3"])
@pytest.mark.parametrize("layout", ["DDP", "HSDP", "TP and replicas"])
def test_the_curve_of_one_process_with_compressed_synchronization(
    tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str
) -> None:
    more = [f"--optimizer.name={optimizer}"]
    more += ["--optimizer.options", *(["tail=0"] if optimizer == "dion" else ["selection=random", "polar=svd"])]
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
    train_on(layout, *words, *more, f"--out={tmp_path / 'run'}")
    assert_same_curve(numbers(tmp_path / "run"), numbers(alone(*more)))


@pytest.mark.parametrize("optimizer", ["dion", pytest.param("adamw", marks=pytest.mark.long)])
@pytest.mark.parametrize("layout", ["TP of two", *(pytest.param(name, marks=pytest.mark.long) for name in OF_FOUR)])
def test_qk_clip(tmp_path: Path, words: list[str], alone, numbers, layout: str, optimizer: str) -> None:
    threshold = 0.05
    more = [
        "--model.heads=8",
        f"--qk-clip={threshold}",
        f"--optimizer.name={optimizer}",
        "--accumulation=2",
        "--steps=20",
    ]
    train_on(layout, *words, *more, f"--out={tmp_path / 'run'}")
    many, one = numbers(tmp_path / "run"), numbers(alone(*more))
    assert_same_curve(many, one)
    assert one[0]["max_logit"] > 20 * threshold  # clipped at once, and again and again
    assert all(threshold < record["max_logit"] < 4 * threshold for record in [*many[2:], *one[2:]])


@pytest.mark.long
@pytest.mark.parametrize("layout", ["DDP", "FSDP", "TP and FSDP"])
def test_qk_clip_of_uneven_parts(tmp_path: Path, words: list[str], alone, numbers, layout: str) -> None:
    more = [*ODD, "--qk-clip=0.05", "--steps=20"]
    train_on(layout, *words, *more, f"--out={tmp_path / 'run'}")
    assert_same_curve(numbers(tmp_path / "run"), numbers(alone(*more)))


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        ("dion", "TP and FSDP"),
        *(pytest.param(optimizer, "TP and FSDP", marks=pytest.mark.long) for optimizer in ("adamw", *OTHERS)),
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
    train_on(layout, f"--resume={run}", "--steps=30")
    assert main(["train", f"--resume={run}", "--steps=50", *mesh((1, 1, 1))]) == 0
    assert_same_curve(numbers(run), numbers(alone(*more)))


@pytest.mark.long
@pytest.mark.parametrize("layout", ["DDP", "TP and replicas"])
def test_compressed_state_is_consolidated(tmp_path: Path, words: list[str], alone, numbers, layout: str) -> None:
    more = ["--schedule.decay=constant", "--schedule.warmup=0", "--optimizer.options", "tail=0"]
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
    train_on(layout, f"--resume={run}", "--steps=20")
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
