"""The pages of the documentation: every name of Orthon in them can be imported, every link and every path exists."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING"))]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    """Return a page with the files that it includes."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r'^--8<-- "(.+)"$', lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), text, flags=re.M)


def imported(name: str) -> object:
    """Return the module or the attribute with a dotted name."""
    first, *rest = name.split(".")
    found: object = import_module(first)
    path = first
    for part in rest:
        path = f"{path}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(path)
            except ModuleNotFoundError as error:
                if str(error.name).startswith("orthon"):
                    raise
                return defined(path, rest[rest.index(part) + 1 :])  # another package is not here
    return found


def defined(module: str, names: list[str]) -> object:
    """Return the definition of a name in a module, as its source has it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not names or names[0] in known, f"{module} has no {names[0]!r}"
    return known[names[0]] if names else tree


@each_page
def test_names_of_orthon_can_be_imported(page: Path) -> None:
    text = text_of(page)
    imports = re.findall(r"^from (orthon[\w.]*) import (.+)$", text, flags=re.M)
    names = set(re.findall(r"(?<![\w/.-])orthon(?:\.[A-Za-z_]\w*)+(?![\w/-])", text))
    names |= {f"{module}.{name.strip()}" for module, listed in imports for name in listed.split("#")[0].split(",")}
    # Files that the commands make or read, and no names.
    for name in names - {"orthon.pt"}:
        imported(name)


def test_a_wrong_name_is_found() -> None:
    with pytest.raises(ImportError):
        imported("orthon.linalg.polarize")


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield file and heading of each link that leads to another file here, or within the page."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            file, _, heading = target.partition("#")
            yield file, heading


def headings(page: Path) -> set[str]:
    """Return the headings of a page as links name them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for file, heading in links(page):
        target = page.parent / file if file else page
        assert target.exists(), f"there is no {file!r}"
        assert not heading or heading in headings(target), f"{target.name} has no heading {heading!r}"


@each_page
def test_paths_exist(page: Path) -> None:
    """Paths are those of the repository, or of the package."""
    for path in re.findall(r"`((?:[\w-]+/)+[\w.-]*)`", page.read_text(encoding="utf-8")):
        known = (ROOT / path, ROOT / "src" / "orthon" / path)
        assert path.startswith("checkpoints/step-") or any(each.exists() for each in known), f"there is no {path!r}"
    for path in re.findall(r"\b(?:tests|benchmarks|examples|scripts)/[\w/]+\.py\b", page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"there is no {path!r}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(re.findall(r"[ :-] ([\w/-]+\.md)$", navigation, flags=re.M)) == sorted(pages)
