"""Where the text of a run lies: it may be moved, have a name of any bytes, and hold the run itself."""

import os
import shutil
from pathlib import Path

import pytest

from orthon.train.commands.main import main
from tests.train.support.texts import lines, write_text, write_tokenizer

WORDS = ["--data.source=text", "--steps=2", "--validate-every=2"]


@pytest.fixture
def words(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run without its paths; its text is in the folder `text` of the working directory."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text", lines(200))
    return [*tiny[:-2], *WORDS]


@pytest.mark.parametrize("name", ["moved", "größe", os.fsdecode(b"b\xffd"), os.fsdecode(b"a\xc3"), "with \U0001f600"])
def test_text_that_is_moved(words: list[str], fails, name: str) -> None:
    tokenizer = write_tokenizer(Path("tokenizer.json"))
    command = [*words, "--data.paths=text", f"--data.tokenizer={tokenizer}"]
    assert main(["train", *command, "--out=run"]) == 0
    Path("text").rename(name)
    assert "there is no file or directory" in fails("train", "--resume=run", "--steps=3")
    tokenizer = tokenizer.rename(f"{name}.json")
    flags = [f"--data.paths={name}", f"--data.tokenizer={tokenizer}"]
    assert main(["train", "--resume=run", "--steps=3", *flags]) == 0
    assert main(["train", "--resume=run", "--steps=4"]) == 0
    assert main(["train", *words, *flags, "--resume=auto", "--out=run", "--steps=5"]) == 0
    (Path(name) / "0000.txt").write_text("another text\n")
    assert "was trained on another text" in fails("train", "--resume=run", "--steps=6")


def test_another_tokenizer_is_another_text(words: list[str], fails) -> None:
    write_tokenizer(Path("one.json"))
    write_tokenizer(Path("other.json"), end=None)
    command = [*words, "--data.paths=text", "--data.tokenizer=one.json"]
    assert main(["train", *command, "--out=run"]) == 0
    said = fails("train", "--resume=run", "--steps=3", "--data.tokenizer=other.json")
    assert "was trained on another text: the files of data.source or data.tokenizer have changed" in said


def test_a_comparison_whose_text_is_moved(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"b\xffd")
    for place in ("text", name, name):
        if not Path(place).exists():
            Path("text").rename(place)
        assert main(["compare", *words, f"--data.paths={place}", "--optimizers", "muon", "--out=out"]) == 0
    assert "1 already done" in capsys.readouterr().out


def test_a_path_that_another_locale_has_written(words: list[str]) -> None:
    Path("text").rename("größe")
    assert main(["train", *words, "--data.paths=größe", "--out=run"]) == 0
    config = Path("run/config.yaml")
    bytes_of_c = "größe".encode().decode("ascii", "surrogateescape").encode("unicode_escape").decode()
    config.write_text(config.read_text().replace(str(Path("größe").absolute()), f'"{Path(bytes_of_c).absolute()}"'))
    assert "\\udcc3" in config.read_text()
    assert main(["train", "--resume=run", "--steps=3"]) == 0


@pytest.mark.parametrize("more", [[], ["--data.tokenizer=tokenizer.json"]], ids=["bytes", "tokenizer"])
def test_what_runs_write_is_no_text(words: list[str], more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose text is the folder in which it lies has the same text later, and beside other runs."""
    write_tokenizer(Path("tokenizer.json"))
    words = [*words, "--data.paths=.", *more]
    for out in ("runs/one", "runs/two", "here"):
        assert main(["train", *words, f"--out={out}"]) == 0
    assert main(["compare", *words, "--optimizers", "muon", "--out=both"]) == 0
    assert main(["compare", *words, "--optimizers", "muon", "--out=both"]) == 0
    assert "1 already done" in capsys.readouterr().out
    shutil.rmtree("both")
    for out in ("runs/one", "runs/two", "here"):
        assert main(["train", f"--resume={out}", "--steps=3"]) == 0
    if more:
        Path("tokens.part").mkdir()
        (Path("tokens.part") / "train_000000.bin").write_bytes(b"begun")
        tokenize = ["tokenize", "--data.source=text", "--data.paths=.", *more]
        for _ in range(2):
            assert main(tokenize) == 0


def test_a_refused_resume_changes_nothing(words: list[str], fails, snapshot) -> None:
    assert main(["train", *words, "--data.paths=text", "--out=run"]) == 0
    metrics = Path("run/metrics.jsonl")
    good = metrics.read_text()
    metrics.write_text("{\n" + good)
    before = snapshot(Path("run"))
    said = fails("train", "--resume=run", "--steps=3")
    assert "line 1 of run/metrics.jsonl is damaged; delete the line, or move the file away" in said
    assert snapshot(Path("run")) == before
    metrics.write_text(good)
    assert main(["train", "--resume=run", "--steps=3"]) == 0
    metrics.unlink()
    assert main(["train", "--resume=run", "--steps=4"]) == 0


def test_a_comparison_refuses_damage_before_it_trains(words: list[str], fails, snapshot) -> None:
    words = ["compare", *words, "--data.paths=text", "--out=out", "--optimizers"]
    assert main([*words, "muon"]) == 0
    [metrics] = Path("out").glob("*/metrics.jsonl")
    metrics.write_text("{\n" + metrics.read_text())
    before = snapshot(Path("out"))
    assert "is damaged; delete the line" in fails(*words, "adamw", "muon")
    assert {path: state for path, state in snapshot(Path("out")).items() if path in before} == before
    assert [path.parent for path in Path("out").glob("*/config.yaml")] == [metrics.parent]
