"""What a release needs: one version, one public address, workflows that run what is there, and whole archives."""

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]


def script(name: str) -> ModuleType:
    """Return a file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps(path: Path) -> list[dict[str, Any]]:
    """Return all steps of a workflow's jobs."""
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job.get("steps", ())]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with the texts that a tag is compared with, and a public address."""
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    replace(tmp_path / "pyproject.toml", ADDRESS, "https://github.com/somebody/orthon")
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_one_version() -> None:
    version = PYPROJECT["project"]["version"]
    check = script("check_tag")
    entry, date, text = check.changelog_entry(ROOT)
    assert (entry, check.citation(ROOT)["version"]) == (version, version)
    assert check.citation(ROOT)["date-released"] == date
    assert "### " in text


@pytest.mark.parametrize(
    ("tag", "file", "old", "new", "fault"),
    [
        ("v{}", None, "", "", None),
        ("{}", None, "", "", r"the tag is \d.*, but pyproject.toml has version"),
        ("v9.9.9", None, "", "", "the tag is v9.9.9, but pyproject.toml has version"),
        ("v{}", "CHANGELOG.md", "## {} - ", "## 0.0.1 - ", "CHANGELOG.md has no entry of version"),
        ("v{}", "CHANGELOG.md", "## {} - ", "## Unreleased ", "its newest is of none"),
        ("v{}", "CITATION.cff", "version: {}", "version: 0.0.1", "CITATION.cff should have version"),
        ("v{}", "CITATION.cff", 'released: "', 'released: "1', "and the date of the changelog's entry"),
        ("v{}", "pyproject.toml", "somebody", "THE_ORGANISATION", "no public address yet"),
    ],
)
def test_tags(copied: Path, tag: str, file: str | None, old: str, new: str, fault: str | None) -> None:
    version = PYPROJECT["project"]["version"]
    if file is not None:
        replace(copied / file, old.format(version), new)
    faults = script("check_tag").faults(copied, tag.format(version))
    if fault is None:
        assert faults == []
    else:
        assert re.search(fault, "\n".join(faults)), faults


def test_the_address_stands_in_one_place() -> None:
    owner = ADDRESS.removeprefix("https://").removesuffix("orthon")  # github.com/OWNER/
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    lines = [
        f"{name}: {line}"
        for name in listed.stdout.split("\0")
        if name and (ROOT / name).is_file()
        for line in (ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines()
        if owner in line
    ]
    assert lines == [f'pyproject.toml: repository = "{ADDRESS}"']


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_is_there(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv")
    targets = set(re.findall(r"^([\w./-]+):(?!=)", makefile, flags=re.M))
    commands = [step["run"] for step in steps(path) if "run" in step]
    assert commands
    for command in commands:
        assert {*re.findall(r"\bmake ([\w./-]+)", command)} <= targets
        for file in re.findall(r"python ([\w./-]+\.py)", command):
            assert (ROOT / file).is_file()
        assert "${{" not in command, "what comes from outside goes by env, not into the shell's text"
    for used in re.findall(r"uses: \./(\S+)", path.read_text(encoding="utf-8")):
        assert (ROOT / used).is_file()


def test_workflows_have_what_is_promised() -> None:
    yaml = pytest.importorskip("yaml")
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "publish.yml"]
    matrix = yaml.safe_load(WORKFLOWS[0].read_text(encoding="utf-8"))["jobs"]["test"]["strategy"]["matrix"]
    classified = [name.split()[-1] for name in PYPROJECT["project"]["classifiers"] if ":: Python :: 3." in name]
    assert matrix["python"] == classified
    assert PYPROJECT["project"]["requires-python"] == f">={classified[0]}"
    assert PYPROJECT["project"]["dependencies"] == [f"torch>={matrix['torch'][0].removesuffix('.0')}"]
    assert any("check_tag.py" in step.get("run", "") for step in steps(WORKFLOWS[1]))


def test_templates_of_issues_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= template.keys()
            ids = [part["id"] for part in template["body"] if part["type"] != "markdown"]
            assert len(ids) == len(set(ids)) > 0


def test_links_of_the_page_are_whole() -> None:
    pytest.importorskip("hatchling")
    page = script("package_page").with_whole_links
    text = (
        "[a](docs/a.md#b) ![p](docs/p.png) [`c`](c.py) [web](https://x.org) [here](#b) `d[0](x)`\n```\ne[0](x)\n```\n"
    )
    assert page(text, repository="https://h/o", tag="v1") == (
        "[a](https://h/o/blob/v1/docs/a.md#b) ![p](https://h/o/raw/v1/docs/p.png) [`c`](https://h/o/blob/v1/c.py) "
        "[web](https://x.org) [here](#b) `d[0](x)`\n```\ne[0](x)\n```\n"
    )


def test_archives_hold_what_they_should() -> None:
    """The wheel is the package, and the source archive what the wheel is built from."""
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    def files(builder: Any) -> set[str]:
        with builder.config.set_build_data({"artifacts": [], "force_include": {}}):
            return {file.distribution_path for file in builder.recurse_included_files()}

    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "orthon").rglob("*")
        if path.suffix in {".py", ".typed"}
    }
    assert files(WheelBuilder(str(ROOT))) == source
    texts = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "SECURITY.md", "scripts/package_page.py"}
    held = files(SdistBuilder(str(ROOT)))
    assert held - {"pyproject.toml", ".gitignore"} == {f"src/{name}" for name in source} | texts
