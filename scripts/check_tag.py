"""`python scripts/check_tag.py v1.2.3`: may the checkout be published under this tag? If not, it prints why."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "THE_ORGANISATION"


def package_version(root: Path) -> str:
    """Return the version in pyproject.toml."""
    version: str = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return version


def changelog_entry(root: Path) -> tuple[str, str, str]:
    """Return version, date and text of the newest entry of the changelog; what is not released yet is no entry."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    return (found[1], found[2], found[3].strip()) if found else ("", "", "")


def citation(root: Path) -> dict[str, str]:
    """Return the fields of CITATION.cff that are plain words on one line."""
    text = (root / "CITATION.cff").read_text(encoding="utf-8")
    return {name: value.strip("\"'") for name, value in re.findall(r"^([\w-]+): (.+)$", text, flags=re.M)}


def faults(root: Path, tag: str) -> list[str]:
    """Return what speaks against publishing, in words."""
    version = package_version(root)
    entry, date, text = changelog_entry(root)
    cited = citation(root)
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but pyproject.toml has version {version}")
    if entry != version or not text:
        found.append(f"CHANGELOG.md has no entry of version {version}; its newest is of {entry or 'none'}")
    if cited.get("version") != version or cited.get("date-released") != date:
        found.append(f"CITATION.cff should have version {version} and the date of the changelog's entry, {date}")
    if PLACEHOLDER in (root / "pyproject.toml").read_text(encoding="utf-8"):
        found.append(f"pyproject.toml has no public address yet: {PLACEHOLDER}")
    return found


def main(words: list[str]) -> str | None:
    """Return why a tag cannot be published, or None."""
    if len(words) != 1:
        return "usage: python scripts/check_tag.py TAG"
    return "\n".join(faults(ROOT, words[0])) or None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
