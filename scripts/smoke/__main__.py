"""`python -m scripts.smoke WHEEL`: the wheel alone, its types, and the demo, in an environment that holds nothing else.

The environment and all results lie in a temporary folder outside of the checkout. Python, and the releases of torch and
of the other packages, are those that development uses: `--constraint FILE` names others.
"""

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEMO_STEPS = 300 // 10


class Environment:
    """A new environment of this Python, with torch and nothing else."""

    def __init__(self, folder: Path, constraint: Path) -> None:
        self.folder, self.constraint = folder, constraint
        venv.create(folder / "venv", with_pip=True)
        torch = next(line for line in constraint.read_text().splitlines() if line.startswith("torch=="))
        self.install(torch)

    def run(self, program: str, *words: str | Path, code: int = 0) -> str:
        """Run one of its programs outside of the checkout, and return what it prints.

        Raises:
            SystemExit: The exit code is not `code`.
        """
        # No module of the checkout, and no setting of the caller's Python, may help. Torch warns where NumPy is not.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        clean["PYTHONWARNINGS"] = "ignore:Failed to initialize NumPy"
        done = subprocess.run(
            [self.folder / "venv" / "bin" / program, *words],
            cwd=self.folder,
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != code:
            sys.exit(f"{program} {' '.join(map(str, words))}: exit code {done.returncode}, not {code}\n{done.stdout}")
        return done.stdout

    def install(self, *packages: str | Path) -> None:
        """Install packages by pip."""
        self.run("python", "-m", "pip", "install", "--quiet", "--constraint", self.constraint, *packages)

    def packages(self) -> set[str]:
        """Return the names of all packages in it."""
        listed = self.run("python", "-m", "pip", "list", "--format=freeze").splitlines()
        return {line.partition("==")[0] for line in listed if "==" in line}


def check_core(environment: Environment, wheel: Path) -> None:
    """The wheel brings nothing but itself; each optimizer makes a step; the trainer says what it needs."""
    before = environment.packages()
    environment.install(wheel)
    brought = environment.packages() - before
    if brought != {"orthon"}:
        sys.exit(f"the wheel brings {sorted(brought)}, and should bring orthon alone")
    print(environment.run("python", "-P", HERE / "core.py", wheel.name.split("-")[1]), end="")
    for command in ("train", "compare", "tokenize", "convert", "explain", "plan"):
        said = environment.run("orthon", command, code=2)
        if said != "orthon: the trainer needs its extra: pip install 'orthon[train]'\n":
            sys.exit(f"orthon {command} without the extra says {said!r}")


def check_types(environment: Environment) -> None:
    """Mypy and pyright see the types in the package, right uses and wrong ones."""
    environment.install("mypy", "pyright")
    environment.run("mypy", "--strict", "--warn-unused-ignores", HERE / "typed.py")
    environment.run("pyright", "--pythonpath", environment.folder / "venv" / "bin" / "python", HERE / "typed.py")


def check_demo(environment: Environment, wheel: Path) -> None:
    """The trainer's extra is all that the demo needs."""
    environment.install(f"{wheel}[train]")
    said = environment.run("orthon", "compare", "--steps", str(DEMO_STEPS), "--out", "demo")
    for name in ("comparison.md", "comparison.png"):
        if not (environment.folder / "demo" / name).is_file():
            sys.exit(f"orthon compare has written no {name}:\n{said}")


def main(words: Sequence[str] | None = None) -> None:
    """Try a wheel; the first fault ends it with exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m scripts.smoke", description="Try a wheel as its users would.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--constraint", type=Path, default=ROOT / "constraints.txt", help="pins, of torch at least")
    given = parser.parse_args(words)
    wheel = given.wheel.resolve(strict=True)
    with TemporaryDirectory(prefix="orthon-smoke-") as folder:
        environment = Environment(Path(folder), given.constraint.resolve(strict=True))
        check_core(environment, wheel)
        print("the core works with torch alone")
        check_types(environment)
        print("mypy and pyright see its types")
        check_demo(environment, wheel)
        print(f"the demo works, in {DEMO_STEPS} steps")


main()
