from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from orthon.train.errors import UserError
from orthon.train.settings.base import check
from orthon.train.settings.data import DataConfig
from orthon.train.settings.file import read_config, write_config
from orthon.train.settings.key_values import parse_pairs
from orthon.train.settings.model import SIZES, ModelConfig, SizeName
from orthon.train.settings.optimizer import OptimizerConfig
from orthon.train.settings.run import CompareConfig, RunConfig, ScheduleConfig, TrainConfig


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=7,
        model=ModelConfig(size="4M", layers=3),
        data=DataConfig(source="text", paths=("some/file", "other")),
        schedule=ScheduleConfig(decay="cosine", final=0.1),
        optimizer=OptimizerConfig(
            lr=1e-5, rank_fraction=0.5, options={"power_iterations": 2, "eps": 1e-9, "adjust_lr_fn": "none"}
        ),
    )
    write_config(tmp_path / "run.yaml", config)
    assert read_config(tmp_path / "run.yaml", TrainConfig) == config


def test_yaml_leaves_out_and_converts(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optimizer:\n  lr: 1e-3\n  scalar_lr: 1\nsteps: 5\n")  # YAML takes 1e-3 for a word
    expected = TrainConfig(steps=5, optimizer=OptimizerConfig(lr=0.001, scalar_lr=1.0))
    assert read_config(path, TrainConfig) == expected
    path.write_text("optimizer: {options: {eps: 1e-9}}\n")
    assert read_config(path, TrainConfig).optimizer.options == {"eps": 1e-9}
    path.write_text("")
    assert read_config(path, TrainConfig) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "there is no setting stepz"),
        ("model: {sizes: 1M}", "there is no setting model.sizes"),
        ("model: 1M", "model must hold settings by name but is '1M'"),
        ("steps: many", "steps must be a valid integer but is 'many'"),
        ("steps: 2.5", "steps must be a valid integer but is 2.5"),
        ("clip: yes", "clip must be a valid number but is True"),
        ("clip_matrices: 1", "clip_matrices must be a valid boolean but is 1"),
        ("data: {paths: {a: file}}", "data.paths must be a valid array but is {'a': 'file'}"),
        ("data: {name: 3}", "data.name must be a valid string but is 3"),
        (
            "optimizer: {name: sgd}",
            "optimizer.name must be 'dion', 'dion2', 'dion3', 'muon', 'normuon', 'torch-muon', 'adamw' or 'lion' "
            "but is 'sgd'",
        ),
        ("optimizer: {options: 3}", "optimizer.options must be a mapping but is 3"),
        ("steps: [", "is not YAML"),
        ("3", "the file must hold settings by name"),
        ("&a [*a]", "it means more than 10000 values"),
        ("2026-01-01: 3", "there is no setting 2026-01-01"),
        ("data: {name: 2026-01-01, split: 3}", "data.split must be a valid string but is 3"),  # a date is a word
        ("optimizers: [dion]", "optimizers is a setting of orthon compare; orthon train has optimizer.name"),
        ("momentum: 0.9", "momentum is a setting of orthon compare; orthon train has optimizer.momentum"),
    ],
)
def test_yaml_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml") as error:
        read_config(path, TrainConfig)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (
            TrainConfig,
            {"model": {"hidden_size": 130}},
            "model.hidden_size must be an even multiple of model.heads (4) but is 130",
        ),
        (TrainConfig, {"model": {"kv_heads": 3}}, "model.kv_heads must divide model.heads (4) but is 3"),
        (TrainConfig, {"model": {"layers": 0}}, "model.layers must be greater than or equal to 1 but is 0"),
        (TrainConfig, {"model": {"size": "2M"}}, "model.size must be '1M', '4M'"),
        (TrainConfig, {"optimizer": {"lr": -1.0}}, "optimizer.lr must be greater than 0 but is -1.0"),
        (TrainConfig, {"optimizer": {"lr": float("nan")}}, "optimizer.lr must be a finite number but is nan"),
        (
            TrainConfig,
            {"optimizer": {"weight_decay": -0.1}},
            "optimizer.weight_decay must be greater than or equal to 0 but is -0.1",
        ),
        (
            TrainConfig,
            {"optimizer": {"rank_fraction": 1.5}},
            "optimizer.rank_fraction must be less than or equal to 1 but is 1.5",
        ),
        (TrainConfig, {"optimizer": {"momentum": 1.0}}, "optimizer.momentum must be less than 1 but is 1.0"),
        (CompareConfig, {"momentum": -0.1}, "momentum must be greater than or equal to 0 but is -0.1"),
        (
            TrainConfig,
            {"optimizer": {"name": "adamw", "rank_fraction": 0.5}},
            "optimizer.rank_fraction is 0.5, but only dion has a rank and optimizer.name is adamw",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "dion2", "rank_fraction": 0.5}},
            "only dion has a rank and optimizer.name is dion2",
        ),
        (
            TrainConfig,
            {"optimizer": {"fraction": 0.5}},
            "optimizer.fraction is 0.5, but only dion2 and dion3 update a share of the rows and optimizer.name is dion",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "muon", "fraction": 0.5}},
            "only dion2 and dion3 update a share of the rows",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "dion2", "fraction": 0.0}},
            "optimizer.fraction must be greater than 0 but is 0.0",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "dion3", "fraction": 1.5}},
            "optimizer.fraction must be less than or equal to 1 but is 1.5",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "dion2", "options": {"fraction": 0.5}}},
            "optimizer.options must not contain fraction: it is set by optimizer.fraction",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "normuon", "compressed_sync": True}},
            "only dion, dion2 and dion3 have it and optimizer.name is normuon",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "dion2", "compressed_sync": True}},
            "dion2 needs all gradients to choose its rows unless optimizer.options has selection=random, "
            "and selection is global",
        ),
        (
            TrainConfig,
            {"optimizer": {"name": "dion3", "compressed_sync": True, "options": {"selection": "local"}}},
            "dion3 needs all gradients to choose its rows unless optimizer.options has selection=random, "
            "and selection is local",
        ),
        (
            TrainConfig,
            {"optimizer": {"compressed_sync": True, "options": {"tail": 0.7}}},
            "the tail of dion's update needs all gradients in the momentum unless optimizer.options has tail=0, "
            "and tail is 0.7",
        ),
        (TrainConfig, {"optimizer": {"options": {"lr": 1.0}}}, "it is set by optimizer.lr"),
        (TrainConfig, {"schedule": {"warmup": 1.5}}, "schedule.warmup must be less than or equal to 1 but is 1.5"),
        (TrainConfig, {"schedule": {"decay": "constant", "final": 0.1}}, "schedule.decay constant does not decay"),
        (TrainConfig, {"data": {"source": "text"}}, "data.paths must name files or directories"),
        (TrainConfig, {"data": {"paths": ("x",)}}, "only data.source text, jsonl, parquet, saved or shards uses it"),
        (
            TrainConfig,
            {"data": {"source": "text", "paths": ("x",), "vocab_size": 9}},
            "only data.source shards uses it",
        ),
        (TrainConfig, {"data": {"source": "hf"}}, "data.name must name a data set"),
        (TrainConfig, {"steps": 0}, "steps must be greater than or equal to 1 but is 0"),
        (TrainConfig, {"accumulation": 3}, "accumulation must divide batch_size (8) but is 3"),
        (TrainConfig, {"clip": 0.0, "clip_matrices": True}, "clip is 0 and clips nothing"),
        (TrainConfig, {"qk_clip": 0.0}, "qk_clip must be greater than 0 but is 0.0"),
        (CompareConfig, {"qk_clip": float("inf")}, "qk_clip must be a finite number but is inf"),
        (TrainConfig, {"sample_tokens": 256}, "be at most 255 but is 256"),
    ],
)
def test_errors_name_setting_value_and_what_is_allowed(
    kind: type[RunConfig], content: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check(kind, content)
    assert message in str(error.value)


def test_compressed_synchronization_without_a_tail() -> None:
    """What has no tail is not refused, and neither is a rule that knows none."""
    for settings in (
        {"options": {"tail": 0}},
        {"options": {"tail": 0.0, "right_factor": "polar"}},
        {"name": "dion2", "options": {"selection": "random"}},
    ):
        mesh = {"dp_replicate": 2}
        assert check(TrainConfig, {"mesh": mesh, "optimizer": {"compressed_sync": True, **settings}})
    with pytest.raises(UserError, match="tail is 0.7"):
        check(TrainConfig, {"optimizer": {"compressed_sync": True, "options": ["tail=0.7"]}})


def test_sizes() -> None:
    assert set(SIZES) == set(get_args(SizeName))
    for name in SIZES:
        shape = ModelConfig(size=name).shape
        attention = shape.hidden_size**2 * (2 + 2 * shape.kv_heads / shape.heads)
        matrices = shape.layers * (attention + 3 * shape.hidden_size * shape.ffn)
        said = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
        assert abs(matrices / said - 1) < 0.15, f"{name} has {matrices / 1e6:.1f} M"
    assert ModelConfig(context=64, layers=2).shape == replace(SIZES["1M"], context=64, layers=2)


def test_key_value_pairs() -> None:
    assert parse_pairs(["a=1", "b=1e-9", "c=true", "d=long"]) == {"a": 1, "b": 1e-9, "c": True, "d": "long"}
    assert parse_pairs(["a-b=[0.9,0.99]", "c=(1/2, 3)", "d=1/8", "e=None"]) == {
        "a_b": [0.9, 0.99],
        "c": [0.5, 3],
        "d": 0.125,
        "e": None,
    }
    for word in ("a", "=1", "a=[x]", "a=[true]", "a=[[1]]", "a={b: 1}", "a=2026-01-01", "a=["):
        with pytest.raises(ValueError, match=r"optimizer\.options.*(KEY=VALUE|takes numbers|not a value)"):
            parse_pairs([word])
