"""What people type: short helps, the nearest names, numbers as they write them, and no traceback whatever it is."""

import os
import sys
from pathlib import Path

import pytest

from orthon.train.commands.main import main
from orthon.train.commands.short_help import SHORT
from orthon.train.settings.base import dotted_names
from orthon.train.settings.data import DataConfig
from orthon.train.settings.file import read_config
from orthon.train.settings.key_values import parse_pairs
from orthon.train.settings.model import SIZES, ModelConfig
from orthon.train.settings.numbers import fraction, of_word, whole
from orthon.train.settings.run import CompareConfig, TrainConfig
from orthon.train.settings.yaml import parse_yaml
from orthon.train.text.corpus import load_corpus

HELPS = Path(__file__).parent / "help"


@pytest.mark.parametrize("command", ["train", "compare"])
def test_short_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([command, "--help"], [command, "-h"], [command, "--steps", "3", "--help"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert said == (HELPS / f"{command}.txt").read_text()
    lines = said.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert len(SHORT[command].options) == 10
    assert len(SHORT[command].examples) == 3
    assert main([command, "--help-all"]) == 0
    everything = capsys.readouterr().out
    for kind in (TrainConfig,) if command == "train" else (CompareConfig,):
        for name in dotted_names(kind):
            assert f"--{name.replace('_', '-')}" in everything
    for option, _ in SHORT[command].options:
        assert option.split()[0] in everything


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", 'Unknown command "trian". Did you mean "train"?'),
        ("train --stepz 3", "Unknown option: --stepz. Did you mean --steps?"),
        ("train -steps 3", "Did you mean --steps?"),
        ("train --stepz=3", "Unknown option: --stepz. Did you mean --steps?"),
        ("train --lr 3", "Did you mean --optimizer.lr?"),
        ("train --rank-fractoin 3", "Did you mean --optimizer.rank-fraction?"),
        ("train --hidden_size 3", "Did you mean --model.hidden-size?"),
        ("train --no-clip-matrics", "Did you mean --no-clip-matrices?"),
        ("compare --optimizer dion", "Did you mean --optimizers?"),
        ("train --optimizer.name dionn", "but is 'dionn'; did you mean 'dion'?"),
        ("train --model.size 4m", "but is '4m'; did you mean '4M'?"),
        ("compare --optimizers Dion", "did you mean 'dion'?"),
        ("train --optimizer.name muon --optimizer.options polar_step=3", "did you mean 'polar_steps'?"),
        ("train --optimizer.options eps=1 eps=2", "optimizer.options names 'eps' 2 times"),
        ("train --optimizer.options power-iterations=1 power_iterations=2", "names 'power_iterations' 2 times"),
        ("TRAIN", 'Unknown command "TRAIN". Did you mean "train"?'),
        ("--helpall", 'Did you mean "--help-all"?'),
        ("train --helpall", "Did you mean --help-all?"),
        ("train --optimizer.rank 1/8", "Did you mean --optimizer.rank-fraction?"),
        ("train --rank 1/8", "Did you mean --optimizer.rank-fraction?"),
        ("train --optimizer.learning-rate 1", "Did you mean --optimizer.lr?"),
        ("train --fraction-rank 1/8", "Did you mean --optimizer.rank-fraction?"),
        ("train --size-batch 8", "Did you mean --batch-size?"),
        ("train --batchsize 8", "Did you mean --batch-size?"),
        ("train --mesh.dp 8", "Did you mean --mesh.dp-shard?"),
        ("train --data.source text --data.path a.txt", "Unknown option: --data.path. Did you mean --data.paths?"),
        ("convert a --source torch-adam --out b", "but is 'torch-adam'; did you mean 'torch-adamw'?"),
    ],
)
def test_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails, words: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*words.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "there is no setting stepz; did you mean steps?"),
        ("lr: 3", "there is no setting lr; did you mean optimizer.lr?"),
        ("optimizer: {rank-fractoin: 3}", "did you mean optimizer.rank_fraction?"),
        ("model: {sise: 4M}", "did you mean model.size?"),
        ("zzz: 4M", "there is no setting zzz; there are steps, "),
        ("steps: 3\nsteps: 4", "'steps' is there twice"),
        ("batch-size: 3\nbatch_size: 4", "batch_size is there twice, with a dash and with an underscore"),
        ("steps: 2026-99-99", "is not YAML: a value in it cannot be read"),
        ("steps: !!int x", "is not YAML: a value in it cannot be read"),
        ("steps: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &a {<<: *a}", "there is no setting a"),
        ("steps: " + 5000 * "9", "is not YAML"),
        ("model: " + 5000 * "[" + 5000 * "]", "nested more than 20 levels deep"),
        ("a:\n" + "".join(" " * level + "a:\n" for level in range(1, 900)), "nested more than 20 levels deep"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(9 * ['*' + chr(97 + n)])}]" for n in range(9)
        ), "it means more than 10000 values"),
        ("steps:", "steps must be a valid integer but is None"),
        ("steps: 010", "steps must be a valid integer but is '010'"),
        ("steps: 1:30", "steps must be a valid integer but is '1:30'"),
        ("schedule: {decay: }", "schedule.decay must be 'linear', 'cosine' or 'constant' but is None\n"),
        ("sweep: 0", "sweep must be greater than 0 but is 0"),
        ("sweep: {a: 1}", "sweep must be a valid array but is {'a': 1}"),
        ("settings: {steps: 3}", "there is no setting settings; there are steps, "),
        ("optimizer.rank-fraction: 1/8", "no setting optimizer.rank_fraction; write rank_fraction under optimizer:"),
    ],
)  # fmt: skip
def test_files_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    said = fails("compare" if "optimizers" in text or "sweep" in text else "train", "--config", "run.yaml")
    assert "run.yaml" in said
    assert message in said
    assert len(said) < 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --optimizer.options a=[1", "optimizer.options: '[1' in 'a=[1' is not a value"),
        ("train --seed 99999999999999999999999", "seed must be less than or equal to 1000000000000000000"),
        ("train --seed 18446744073709551615", "seed must be less than or equal to 1000000000000000000"),
        ("train --steps 99999999999999999999999", "steps must be less than or equal to 1000000000000"),
        ("train --steps " + 5000 * "9", "steps must be less than or equal to 1000000000000"),
        ("train --steps 1e30", "steps must be less than or equal to 1000000000000"),
        ("train --steps 1e999", "steps must be a valid integer"),
        ("train --steps 1/3", "steps must be a valid integer"),
        ("train --optimizer.rank-fraction 1/0", "optimizer.rank_fraction must be a valid number"),
        ("train --model.hidden-size 1e12", "the weights of model"),
        ("train --batch-size 1e12", "the tokens of a batch of batch_size 1000000000000 take"),
        ("train --model.layers 1e12", "model.layers must be less than or equal to 10000"),
        ("train --optimizer.options betas=[0.9]", "betas should be two numbers"),
        ("train --optimizer.options [1]", "optimizer.options: KEY=VALUE expected but got [1]"),
        ('train --optimizer.options {"eps":1}', "optimizer.options: KEY=VALUE expected but got {'eps': 1}"),
        ("train --optimizer.options tail=1e300", "optimizer dion: value cannot be converted to type float without "),
        ("train --optimizer.name adamw --optimizer.options capturable=true", "optimizer adamw: If capturable=True"),
        ("train --optimizer.lr 1e39", "optimizer dion: value cannot be converted to type float without overflow"),
        ("train --optimizer.scalar-lr 1e38", "(with lr 0.04, scalar_lr 1e+38, weight_decay 0.01)"),
        ("train --optimizer.weight-decay 1e308", "optimizer.weight_decay times a learning rate must be at most 3.4"),
        ("train --model " + 5000 * '{"a":', "is nested too deep"),
        ("train --data.paths=" + 5000 * "[", "is nested too deep"),
        ("train -- --steps 3", "--steps comes after --, which ends the options: write it before"),
        ("train --data.source shards --data.paths deep.yaml --data.token-bits 8", "token_bits must be 16 or 32"),
        ("compare --sweep 1 1.0000001", "two runs would be in runs/compare/dion-lr0.04, dion with lr 0.04 and dion "),
        ("train --optimizer.options state_dtype=torch.int7", "state_dtype should be None or one of torch.float64"),
        ("train --optimizer.name torch-muon --optimizer.options ns_steps=x", "optimizer torch-muon: "),
        ("train --optimizer.name adamw --optimizer.options betas=3", "optimizer adamw: "),
        ("compare --optimizers dion:1e999999999", "optimizer.rank_fraction must be a finite number"),
        ("compare --sweep 0", "sweep must be greater than 0 but is '0'"),
        ("compare --sweep 5e-324", "sweep has 4.94066e-324, with which the learning rate of dion would be 0"),
        ("compare --sweep 1e308 1.7e308 --optimizers adamw --weight-decay=0", "optimizer adamw: "),
        ("train --clip -1/2", "clip must be greater than or equal to 0 but is '-0.5'"),
        ("train --optimizer.name lion --optimizer.options betas=3", "lion: Lion: betas should be two numbers"),
        ("explain --optimizer.name adamw --optimizer.options betas=3", "adamw: AdamW: betas should be two numbers"),
        ("explain --mesh.dp-shard 1e12", "mesh.tp must be at most 131,072 processes but is 1,000,000,000,000"),
        ("plan --mesh.dp-replicate 3e9", "mesh.tp must be at most 131,072 processes but is 3,000,000,000"),
        ("plan --vocabulary 1e9", "vocabulary must be less than or equal to 1048576 but is '1e9'"),
        ("explain --config-json tokens.json", "tokens.json: vocab_size must be at most 1,048,576 but is 2147483647"),
        ("train --model.size 405B --data.vocab-size 1e9", "data.vocab_size must be less than or equal to 1048576"),
        ("plan --utilization 1/2", "utilization is for the estimate from tokens_per_step: leave it out, or give that"),
        ("plan --recompute", "recompute is for the estimate from tokens_per_step"),
        ("plan --machine-file x", "machine_file is what machine measure writes, but machine is 'h100'"),
        ("convert a --source torch-adamw --out=", "out must be a path but is ''"),
        ("compare --sweep 1/0", "sweep must be a valid number"),
        ("plan --machine deep.yaml", "machine: deep.yaml is not YAML: it is nested more than 20 levels deep"),
        ("plan --config-json deep.yaml", "deep.yaml is not JSON"),
        ("plan --config-json /dev/zero", "/dev/zero has more than 16,777,216 bytes"),
        ("plan --config-json giant.json", "giant.json: num_hidden_layers must be at most 10,000 but is 1000000000"),
        ("train --out=", "out must be a path but is ''"),
        ("train --config=", "config must be a path but is ''"),
        ("train --resume=", "resume must be a path but is ''"),
        ("train --out=~no-such-user/runs", "out: there is no home folder for '~no-such-user/runs'"),
        ("train --data.source text --data.paths=", "data.paths must be a path but is ''"),
        ("train --data.source text --data.paths=a --data.held-out-paths=", "data.held_out_paths must be a path"),
        ("train --data.tokenizer=~no-such-user/x", "data.tokenizer: there is no home folder for '~no-such-user/x'"),
        ("compare --out=", "out must be a path but is ''"),
        ("tokenize --data.tokenizer x --out=", "out must be a path but is ''"),
        ("plan --json=", "json must be a path but is ''"),
        ("explain --machine ~no-such-user/x.yaml", "machine: there is no home folder for '~no-such-user/x.yaml'"),
        ("convert ~no-such-user --source torch-adamw --out x", "IN.pt: there is no home folder for '~no-such-user'"),
        ("train --out /proc/x", "/proc/x cannot be made"),
    ],
)
def test_one_line_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails, snapshot, words: str, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("text is loaded")

    for command in ("train", "compare"):
        __import__(f"orthon.train.commands.{command}")
        monkeypatch.setattr(sys.modules[f"orthon.train.commands.{command}"], "load_corpus", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    (tmp_path / "giant.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000000}')
    (tmp_path / "tokens.json").write_text('{"model_type": "llama", "vocab_size": 2147483647}')
    before = snapshot(tmp_path)
    said = fails(*words.split())
    assert message in said
    assert len(said) < 500
    assert snapshot(tmp_path) == before


def test_numbers() -> None:
    assert [fraction(word) for word in ("1/8", " 3/4 ", "-1/2", "x", "1/0", 2)] == [0.125, 0.75, -0.5, "x", "1/0", 2]
    assert [whole(word) for word in ("1e3", "8/2", 1000.0, "1.5e1", "1/3", 2.5)] == [1000, 4, 1000, 15, "1/3", 2.5]
    assert whole(True) is True
    assert [of_word(word) for word in ("16", " 32 ", "x", "1.0", 16, None)] == [16, 32, "x", "1.0", 16, None]
    assert parse_pairs(["polar_steps=1e1", "a=8/2", "b=0.5", "c=[1.0, 2e0]", "d=1e300"]) == {
        "polar_steps": 10, "a": 4, "b": 0.5, "c": [1, 2], "d": 1e300
    }  # fmt: skip
    values = "[1e-3, 1., .5, 1.5e-3, 1E+3, 1_0, 0x10, 0b11, +3, -.5, 0, 010, 1:30, 1.2.3, ., _]"
    expected = [1e-3, 1.0, 0.5, 1.5e-3, 1e3, 10, 16, 3, 3, -0.5, 0, "010", "1:30", "1.2.3", ".", "_"]
    assert parse_yaml(values) == expected
    assert list(map(type, parse_yaml(values))) == list(map(type, expected))


def test_files_mean_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "steps: 1e3\nbatch-size: 4\nmodel:\nschedule: {}\n"
        "optimizer:\n  rank-fraction: 1/8\n  options:\n    right-factor: polar\n    betas: [0.9, 0.99]\n"
    )
    config = read_config(path, TrainConfig)
    assert (config.steps, config.batch_size, config.model) == (1000, 4, ModelConfig())
    assert config.optimizer.rank_fraction == 0.125
    assert config.optimizer.options == {"right_factor": "polar", "betas": [0.9, 0.99]}


def test_one_value_is_a_list_of_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optimizers: dion:1/8\nsweep: 1/2\ndata: {source: text, paths: a b.txt, held-out-paths: c.txt}\n")
    config = read_config(path, CompareConfig)
    assert (config.optimizers, config.sweep) == (("dion:1/8",), (0.5,))
    assert config.data.paths == (str(Path("a b.txt").absolute()),)
    assert config.data.held_out_paths == (str(Path("c.txt").absolute()),)


def test_names_of_models() -> None:
    for size in SIZES:
        assert ModelConfig(size=size).name == ModelConfig(size=size, context=64).name == size
    small = ModelConfig(hidden_size=32, layers=2, heads=2, kv_heads=1, ffn=64)
    assert small.name == "0.02M"
    assert ModelConfig(hidden_size=16, layers=1, heads=2, kv_heads=1, ffn=32).name == "2.3K"
    assert ModelConfig(size="1B", layers=32).name == "1.9B"
    assert ModelConfig(layers=4).name == "1M"


def test_a_run_with_lists_and_dtypes_is_named_goes_on_and_is_complete(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny: list[str],
    fails,
    snapshot,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "my runs"
    place.mkdir()
    monkeypatch.chdir(place)
    words = ["train", *tiny, "--steps=2", "--optimizer.rank-fraction=1/8"]
    words += ["--optimizer.options", "betas=[0.9,0.99]", "state_dtype=torch.bfloat16"]
    assert main(words) == 0
    assert "LLaMA 0.02M, 0.03 M parameters" in capsys.readouterr().out
    run = place / "runs" / "dion-0.02M"
    assert f"--resume '{run}'" in fails("train", *tiny, f"--out={run}")
    before = snapshot(place)
    assert main(["train", "--resume", str(run)]) == 0
    assert "is complete: all of its 2 steps are done" in capsys.readouterr().out.replace("\n", " ")
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.paths=/dev/zero"], "data.paths must name files or directories, but /dev/zero is a device or a pipe"),
        (["--data.paths=pipe"], "pipe is a device or a pipe"),
        (["--data.paths=text", "--data.tokenizer=/dev/zero"], "it has more than 134,217,728 bytes"),
        (["--data.paths=text", "--data.held-out-paths=text"], "no text in data.paths that is not in data.held_out_pa"),
    ],
)
def test_texts_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("text").write_text("text\n" * 1000)
    assert message in fails("train", "--data.source=text", *words)


def test_a_file_that_is_named_twice_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("text\n" * 1000)
    once = load_corpus(DataConfig(source="text", paths=("texts",)))
    for paths in (("texts", "texts"), ("texts/a.txt", "texts"), ("texts", "texts/../texts/a.txt"), ("~/texts",)):
        assert load_corpus(DataConfig(source="text", paths=paths)).fingerprint == once.fingerprint
