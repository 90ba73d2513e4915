"""Every layout goes on from what every other one has saved, with every rule."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orthon.testing import Pool, layouts
from tests.support import checkpointing
from tests.support.checkpointing import ALONE

Place = tuple[int, str]  # number of ranks, layout
WORLD = 4
ON_FOUR = layouts.layouts_on(WORLD)


@pytest.fixture(scope="module")
def saved(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """Return where the run on a layout is saved, which is done once."""
    folders: dict[Place, Path] = {}

    def folder(world: int, layout: str) -> Path:
        if (world, layout) not in folders:
            folders[world, layout] = tmp_path_factory.mktemp("saved") / "checkpoint"
            ranks.run(world, checkpointing.save, layout, folders[world, layout])
        return folders[world, layout]

    return folder


def sources(target: str) -> tuple[list[str], list[str]]:
    """Return some other layouts, every one in turn, and the rest."""
    place, n = ON_FOUR.index(target), len(ON_FOUR)
    some = [ON_FOUR[(place + 6) % n]]
    return some, [layout for layout in ON_FOUR if layout not in some]


@pytest.mark.parametrize(
    "target", [pytest.param(layout, marks=pytest.mark.long if i % 4 else ()) for i, layout in enumerate(ON_FOUR)]
)
def test_a_layout_goes_on_from_others_and_from_one_process(
    ranks: Pool, saved: Callable[[int, str], Path], target: str
) -> None:
    folders = {source: saved(WORLD, source) for source in sources(target)[0]}
    ranks.run(WORLD, checkpointing.go_on, target, {**folders, ALONE: saved(1, ALONE)})


@pytest.mark.long
@pytest.mark.parametrize("target", ON_FOUR)
def test_a_layout_goes_on_from_every_other(ranks: Pool, saved: Callable[[int, str], Path], target: str) -> None:
    folders = {source: saved(WORLD, source) for source in sources(target)[1]}
    ranks.run(WORLD, checkpointing.go_on, target, folders, timeout=200)


def test_one_process_goes_on_from_every_layout(ranks: Pool, saved: Callable[[int, str], Path]) -> None:
    ranks.run(1, checkpointing.go_on, ALONE, {source: saved(WORLD, source) for source in ON_FOUR}, timeout=200)


# Where one side of a matrix alone is cut, so that Muon has both routes as well.
BY_ROUTE = ["fsdp 0", "fsdp 1", "tp row", "hsdp", "last axis of size 1"]


@pytest.mark.parametrize(
    "layout", [pytest.param(each, marks=[pytest.mark.long] * (i > 0)) for i, each in enumerate(BY_ROUTE)]
)
@pytest.mark.parametrize(("source", "target"), [("owners", "shards"), ("shards", "owners")])
def test_a_route_goes_on_from_the_other_and_from_one_process(
    ranks: Pool, saved: Callable[[int, str], Path], tmp_path: Path, layout: str, source: str, target: str
) -> None:
    ranks.run(WORLD, checkpointing.save, layout, tmp_path / "checkpoint", source)
    folders = {f"{layout} by {source}": tmp_path / "checkpoint"}
    ranks.run(WORLD, checkpointing.go_on, layout, {**folders, ALONE: saved(1, ALONE)}, target)
    ranks.run(1, checkpointing.go_on, ALONE, folders)


# On other numbers of ranks, layouts in turn.
WORLDS = [(2, 4), (2, 8), (4, 8), (4, 2), (8, 2), (8, 4), (2, 1), (8, 1), (1, 2), (1, 8)]
SHORT = {(2, 4), (4, 8), (8, 1), (1, 2)}  # of which the first run has one pair of layouts each


def across() -> list[object]:
    table = []
    for turn, (world, other) in enumerate(WORLDS):
        froms, tos = ([ALONE] if n == 1 else layouts.layouts_on(n) for n in (world, other))
        n = max(len(froms), len(tos))
        for i in range(n):
            source, target = froms[i % len(froms)], tos[-i % len(tos)]
            marks = [] if (world, other) in SHORT and i == (7 * turn + 6) % n else [pytest.mark.long]
            label = f"{source} on {world} to {target} on {other}"
            table.append(pytest.param((world, source), (other, target), id=label, marks=marks))
    return table


@pytest.mark.parametrize(("source", "target"), across())
def test_other_numbers_of_ranks(ranks: Pool, saved: Callable[[int, str], Path], source: Place, target: Place) -> None:
    ranks.run(target[0], checkpointing.go_on, target[1], {f"{source[1]} on {source[0]}": saved(*source)})


WHOLE = {"full_state_dict": True}
SENT = {"full_state_dict": True, "broadcast_from_rank0": True}


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        pytest.param("fsdp 0", "fsdp 0", {}, marks=pytest.mark.long),
        ("fsdp x tp same dim", "fsdp x tp same dim", {"flatten_optimizer_state_dict": True}),
        ("hsdp compressed", "hsdp compressed", {}),
        pytest.param("fsdp 0", "hsdp", WHOLE, marks=pytest.mark.long),
        ("ddp", "fsdp 1", WHOLE),
        ("fsdp x tp same dim", "ddp compressed", WHOLE),
        ("hsdp compressed", "fsdp x tp other dim", SENT),
        ("ddp", "fsdp x tp same dim", SENT),
        pytest.param("fsdp 0", "tp row", SENT, marks=pytest.mark.long),
    ],
)
def test_state_dicts_without_files(ranks: Pool, source: str, target: str, options: dict[str, bool]) -> None:
    ranks.run(WORLD, checkpointing.pass_on, source, target, options)


@pytest.mark.parametrize(
    ("target", "rank_fraction"),
    [
        ("ddp", 0.1),
        ("fsdp x tp same dim", 0.75),
        *(
            pytest.param(layout, rank_fraction, marks=pytest.mark.long)
            for layout in ("ddp", "fsdp 0", "fsdp 1", "hsdp", "fsdp x tp same dim", "fsdp x tp other dim")
            for rank_fraction in (0.1, 0.75)
            if (layout, rank_fraction) not in (("ddp", 0.1), ("fsdp x tp same dim", 0.75))
        ),
    ],
)
def test_another_rank(ranks: Pool, saved: Callable[[int, str], Path], target: str, rank_fraction: float) -> None:
    source = ON_FOUR[(ON_FOUR.index(target) + 3) % len(ON_FOUR)]
    ranks.run(WORLD, checkpointing.go_on_with_another_rank, target, saved(WORLD, source), rank_fraction)
