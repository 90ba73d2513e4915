"""`orthon explain`, and the models without weights that it and `orthon plan` look at."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from orthon.train.commands.main import main
from orthon.train.model.cluster import on_cluster
from orthon.train.model.on_meta import model_on_meta, weights_of_a_token
from orthon.train.settings.cluster import ClusterConfig

QWEN = {"model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}  # fmt: skip
MIXTURE = {"model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
           "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
           "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 16}


def written(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_size_on_a_mesh(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model.size 8B --mesh.dp-shard 64 --mesh.tp 2 --optimizer.name dion --optimizer.rank-fraction 0.25"
    assert main(["explain", *words.split(), "--machine", "h100"]) == 0
    said = capsys.readouterr().out
    assert "model.layers.{0-31}.self_attn.q_proj.weight (×32)" in said
    assert "128256×4096" in said
    assert "dion: 224 parameters, 6.98 billion numbers" in said
    assert "rows/64 × columns/2" in said
    assert "one step on h100: about " in said


def test_405b_on_512_ranks_takes_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    words = "--model.size 405B --mesh.dp-shard 64 --mesh.tp 8 --optimizer.name muon"
    assert main(["explain", *words.split()]) == 0
    seconds = time.process_time() - start
    print(f"{seconds:.1f} s")
    assert seconds < 30
    assert "muon: 882 parameters, 402 billion numbers" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dion2", "dion3", "normuon", "lion", "adamw"])
@pytest.mark.parametrize("mesh", ["", "--mesh.dp-replicate 4", "--mesh.dp-replicate 2 --mesh.tp 2"])
def test_every_optimizer(capsys: pytest.CaptureFixture[str], name: str, mesh: str) -> None:
    assert main(["explain", "--vocabulary=256", *mesh.split(), f"--optimizer.name={name}", "--machine=b200"]) == 0
    assert f"{name}: " in capsys.readouterr().out


def test_a_file_of_hugging_face(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = written(tmp_path, QWEN)
    said = []
    for path in (folder, folder / "config.json"):
        assert main(["explain", f"--config-json={path}", "--mesh.tp=2", "--mesh.dp-shard=2"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "lm_head" not in said[0], "it is tied to the embedding"
    assert "dion: 14 parameters" in said[0]


def test_tensor_parallelism_is_that_of_transformers(tmp_path: Path) -> None:
    model = model_on_meta(ClusterConfig(config_json=written(tmp_path, QWEN)))
    with on_cluster(model, (1, 2, 2)) as ranks:
        assert ranks.size("tp") == 2
        places = {name: param.placements for name, param in model.named_parameters() if isinstance(param, DTensor)}
    layer = "model.layers.0."
    assert places["model.embed_tokens.weight"] == (_StridedShard(0, split_factor=2), Shard(0))
    assert places[layer + "self_attn.q_proj.weight"] == (_StridedShard(0, split_factor=2), Shard(0))
    assert places[layer + "self_attn.o_proj.weight"] == (Shard(0), Shard(1))
    assert places[layer + "self_attn.q_norm.weight"] == (Shard(0),)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_copies_alone_leave_weights_as_they_are() -> None:
    model = model_on_meta(ClusterConfig())
    with on_cluster(model, (8, 1, 1)):
        assert not any(isinstance(param, DTensor) for param in model.parameters())
    model = model_on_meta(ClusterConfig())
    with on_cluster(model, (2, 4, 1)):
        assert {param.placements for param in model.parameters()} == {(Replicate(), Shard(0))}


def test_experts_are_divided_one_by_one(tmp_path: Path) -> None:
    config = ClusterConfig(config_json=written(tmp_path, MIXTURE))
    shapes = {}
    for sizes in ((1, 2, 2), (1, 4, 2)):
        model = model_on_meta(config)
        with on_cluster(model, sizes):
            experts = model.get_parameter("model.layers.0.mlp.experts.down_proj")
            shapes[sizes] = experts.placements, tuple(experts.to_local().shape)
    assert shapes[1, 2, 2] == ((_StridedShard(0, split_factor=2), Shard(0)), (2, 32, 16))
    assert shapes[1, 4, 2] == ((Shard(1), Shard(0)), (3, 8, 16)), "six experts are fewer than eight ranks"


def test_a_token_meets_some_of_the_experts(tmp_path: Path) -> None:
    model = model_on_meta(ClusterConfig(config_json=written(tmp_path, MIXTURE)))
    weights = {name: param.numel() for name, param in model.named_parameters()}
    of_experts = sum(count for name, count in weights.items() if ".experts." in name)
    assert of_experts == 6 * 3 * 16 * 32
    assert weights_of_a_token(model) == sum(weights.values()) - of_experts * 4 // 6


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, "", "config_json must be a config.json or its folder, but config.json: No such file or directory"),
        ("{", "", "config.json is not JSON"),
        ([1], "", "config.json is no configuration of transformers: it has no model_type"),
        ({"hidden_size": 3}, "", "it has no model_type"),
        ({"model_type": "mine"}, "", "of model_type 'mine': this version of transformers does not have it; write "),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "run.Me"}},
            "",
            "of model_type 'mine': its own code is never run; write --model.size",
        ),
        ({"model_type": "vit"}, "", ". makes no language model: ValueError: Unrecognized configuration class"),
        ({**QWEN, "hidden_size": "wide"}, "", "config.json: "),
        (QWEN, "--mesh.tp=4", "mesh.tp must divide the key and value heads (2) but is 4"),
        (
            {**QWEN, "intermediate_size": 49},
            "--mesh.tp=2",
            "mesh.tp must divide the inner width of the feed-forward blocks (49) but is 2",
        ),
        (
            {**MIXTURE, "num_experts": 5},
            "--mesh.tp=2",
            "mesh.tp must divide the number of experts (5) but is 2",
        ),
        (
            GPT2,
            "--mesh.tp=2",
            "transformers has no plan of tensor parallelism for GPT2LMHeadModel: write --mesh.tp 1 and a larger",
        ),
        (QWEN, "--optimizer.name=torch-muon", "torch-muon is PyTorch's own, and no plan can be made of it: write muon"),
        (QWEN, "--optimizer.rank-fraction=0", "optimizer.rank_fraction must be greater than 0 but is '0'"),
        (QWEN, "--optimizer.options colour=red", "optimizer dion: "),
        (
            QWEN,
            "--machine=h1000",
            "machine must be one of cpu, a100, h100, h200, b200, gb300, or a YAML file with such figures",
        ),
        (QWEN, "--model.layers=3", "config_json gives the whole model: leave out --model, or --config-json"),
        (QWEN, "--vocabulary=3", "config_json gives the whole model: leave out --vocabulary, or --config-json"),
    ],
)
def test_what_is_refused(
    fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert message in fails("explain", "--config-json=.", *words.split())
