"""The Python of the documentation: each block runs, or says why it is not run; what it is said to print, it prints."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orthon.algorithms import RULES
from tests.support.doc_blocks import GIVEN, ROOT, Block, blocks, missing_names

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
WITH_CODE = [page for page in PAGES if any(not block.not_run and not block.included for block in blocks(page))]


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks run in a folder of their own. What they register and set up is taken away again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    torch.manual_seed(0)
    rules = dict(RULES)
    yield
    for name in RULES.keys() - rules.keys():
        del RULES[name]
    if (state := sys.modules.get("accelerate.state")) is not None:  # of which there is one in a process
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
    if dist.is_initialized():
        dist.destroy_process_group()


def run(block: Block, page: Path, names: dict[str, object]) -> None:
    """Run one block, with what it takes for given."""
    missing = missing_names(block.text, names)
    if ("mesh" in missing or "dcp." in block.text) and not dist.is_initialized():  # as under torchrun
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    names |= {name: GIVEN[name]() for name in missing}
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")  # errors tell the line of the page
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    if block.prints is not None:
        assert _lines(printed.getvalue()) == _lines(block.prints), printed.getvalue()


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path) -> None:
    """From the first of a page to its last, each with what those before it have made."""
    names: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page):
        if not block.not_run and not block.included:
            run(block, page, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_included_is_an_example(page: Path) -> None:
    """Examples are run by tests of their own."""
    for block in blocks(page):
        for path in block.included:
            assert path.startswith("examples/")
            assert (ROOT / path).is_file()


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```python\nmodel.no_such_thing\n```\n\n<!-- not run: it ends the world -->\n```python\n1/0\n```\n"
    )
    failing, skipped = blocks(page)
    assert (failing.line, failing.not_run, skipped.not_run) == (4, "", "it ends the world")
    with pytest.raises(AttributeError, match="no_such_thing"):
        run(failing, page, {})


def test_other_output_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```python\nprint("a")\n```\n\n<!-- prints -->\n```text\nb\n```\n')
    (block,) = blocks(page)
    with pytest.raises(AssertionError):
        run(block, page, {})


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
