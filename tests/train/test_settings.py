from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from orthon.train.errors import UserError
from orthon.train.settings.file import read_config, write_config
from orthon.train.settings.key_values import format_pairs, parse_pairs
from orthon.train.settings.model_sizes import SIZES, SizeName
from orthon.train.settings.run import (
    CompareConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=7,
        model=ModelConfig(size="4M", layers=3),
        data=DataConfig(source="text", paths=("some/file", "other")),
        schedule=ScheduleConfig(decay="cosine", final=0.1),
        optimizer=OptimizerConfig(
            lr=1e-5, rank_fraction=0.5, options={"power_iterations": 2, "eps": 1e-9, "lr_scale": "none"}
        ),
    )
    write_config(tmp_path / "run.yaml", config)
    assert read_config(tmp_path / "run.yaml", TrainConfig) == config


def test_yaml_leaves_out_and_converts(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optimizer:\n  lr: 1e-3\n  scalar_lr: 1\nsteps: 5\n")  # YAML takes 1e-3 for a word
    expected = TrainConfig(steps=5, optimizer=OptimizerConfig(lr=0.001, scalar_lr=1.0))
    assert read_config(path, TrainConfig) == expected
    path.write_text("")
    assert read_config(path, TrainConfig) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "there is no setting stepz"),
        ("model: {sizes: 1M}", "there is no setting model.sizes"),
        ("model: 1M", "model must hold settings by name but is '1M'"),
        ("steps: many", "steps must be a whole number but is 'many'"),
        ("steps: 2.5", "steps must be a whole number but is 2.5"),
        ("clip: yes", "clip must be a number but is True"),
        ("clip_matrices: 1", "clip_matrices must be true or false but is 1"),
        ("data: {paths: file}", "data.paths must be a list but is 'file'"),
        ("data: {name: 3}", "data.name must be text but is 3"),
        (
            "optimizer: {name: sgd}",
            "optimizer.name must be one of dion, dion2, dion3, muon, normuon, torch-muon, adamw, lion but is 'sgd'",
        ),
        ("optimizer: {options: 3}", "optimizer.options must be a mapping but is 3"),
        ("steps: [", "is not YAML"),
        ("3", "the file must hold settings by name"),
    ],
)
def test_yaml_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml") as error:
        read_config(path, TrainConfig)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ModelConfig(hidden_size=130),
            "model.hidden_size must be an even multiple of model.heads (4) but is 130",
        ),
        (lambda: ModelConfig(kv_heads=3), "model.kv_heads must divide model.heads (4) but is 3"),
        (lambda: ModelConfig(layers=0), "model.layers must be at least 1 but is 0"),
        (lambda: ModelConfig(size="2M"), "model.size must be one of 1M, 4M"),
        (lambda: OptimizerConfig(lr=-1.0), "optimizer.lr must be above 0 but is -1.0"),
        (lambda: OptimizerConfig(lr=float("nan")), "optimizer.lr must be above 0 but is nan"),
        (lambda: OptimizerConfig(weight_decay=-0.1), "optimizer.weight_decay must be at least 0 but is -0.1"),
        (lambda: OptimizerConfig(rank_fraction=1.5), "optimizer.rank_fraction must be in (0, 1] but is 1.5"),
        (lambda: OptimizerConfig(momentum=1.0), "optimizer.momentum must be in [0, 1) but is 1.0"),
        (lambda: CompareConfig(momentum=-0.1), "momentum must be in [0, 1) but is -0.1"),
        (
            lambda: OptimizerConfig(name="adamw", rank_fraction=0.5),
            "optimizer.rank_fraction is 0.5, but only dion has a rank and optimizer.name is adamw",
        ),
        (lambda: OptimizerConfig(name="dion2", rank_fraction=0.5), "only dion has a rank and optimizer.name is dion2"),
        (
            lambda: OptimizerConfig(fraction=0.5),
            "optimizer.fraction is 0.5, but only dion2 and dion3 update a share of the rows and optimizer.name is dion",
        ),
        (lambda: OptimizerConfig(name="muon", fraction=0.5), "only dion2 and dion3 update a share of the rows"),
        (lambda: OptimizerConfig(name="dion2", fraction=0.0), "optimizer.fraction must be in (0, 1] but is 0.0"),
        (lambda: OptimizerConfig(name="dion3", fraction=1.5), "optimizer.fraction must be in (0, 1] but is 1.5"),
        (
            lambda: OptimizerConfig(name="dion2", options={"fraction": 0.5}),
            "optimizer.options must not contain fraction: it is set by optimizer.fraction",
        ),
        (
            lambda: OptimizerConfig(name="normuon", compressed_sync=True),
            "only dion, dion2 and dion3 have it and optimizer.name is normuon",
        ),
        (
            lambda: OptimizerConfig(name="dion2", compressed_sync=True),
            "dion2 needs all gradients to choose its rows unless optimizer.options has selection=random, "
            "and selection is global",
        ),
        (
            lambda: OptimizerConfig(name="dion3", compressed_sync=True, options={"selection": "local"}),
            "dion3 needs all gradients to choose its rows unless optimizer.options has selection=random, "
            "and selection is local",
        ),
        (lambda: OptimizerConfig(options={"lr": 1.0}), "it is set by optimizer.lr"),
        (lambda: ScheduleConfig(warmup=1.5), "schedule.warmup must be in [0, 1] but is 1.5"),
        (lambda: ScheduleConfig(decay="constant", final=0.1), "schedule.decay constant does not decay"),
        (lambda: DataConfig(source="text"), "data.paths must name files or directories"),
        (lambda: DataConfig(paths=("x",)), "only data.source text or shards uses it"),
        (lambda: DataConfig(source="text", paths=("x",), vocab_size=9), "only data.source shards uses it"),
        (lambda: DataConfig(source="hf"), "data.name must name a data set"),
        (lambda: TrainConfig(steps=0), "steps must be at least 1 but is 0"),
        (lambda: TrainConfig(accumulation=3), "accumulation must divide batch_size (8) but is 3"),
        (lambda: TrainConfig(clip=0.0, clip_matrices=True), "clip is 0 and clips nothing"),
        (lambda: TrainConfig(qk_clip=0.0), "qk_clip must be above 0 but is 0.0"),
        (lambda: CompareConfig(qk_clip=float("inf")), "qk_clip must be above 0 but is inf"),
        (lambda: TrainConfig(sample_tokens=256), "be at most 255 but is 256"),
    ],
)
def test_errors_name_setting_value_and_what_is_allowed(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


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
    pairs = {"a": 1, "b": 1e-9, "c": True, "d": "long"}
    assert parse_pairs(format_pairs(pairs)) == pairs
    for word in ("a", "=1", "a=[1]"):
        with pytest.raises(UserError, match=r"KEY=VALUE|takes numbers"):
            parse_pairs([word])
