"""The largest attention logits that the model reports, against the formulas in float64, and their clip."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from orthon.train.commands.main import main
from orthon.train.model import attention_logits
from orthon.train.model.attention_logits import clip_logits, record_logits
from orthon.train.model.build import build_model
from orthon.train.model.parallelize import parallelize
from orthon.train.processes.ranks import Processes
from orthon.train.settings.model import Shape
from orthon.train.settings.run import TrainConfig

ALONE = Processes(torch.device("cpu"))
CLIP = "--qk-clip=0.05"  # of 2 at the start, and far below what training makes of it


def make_model(heads: int = 4, kv_heads: int = 2) -> tuple[LlamaForCausalLM, Tensor]:
    """A model with large logits, and tokens for it."""
    shape = Shape(hidden_size=32, layers=2, heads=heads, kv_heads=kv_heads, ffn=48, context=21)
    model = build_model(shape, 50, seed=0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 20
    generator = torch.Generator().manual_seed(0)
    return model, torch.randint(50, (3, 21), generator=generator)


def inputs_of_attention(model: LlamaForCausalLM, tokens: Tensor) -> list[Tensor]:
    """What each attention layer projects, (b, length, n)."""
    found = []

    def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append(kwargs["hidden_states"].detach())

    hooks = [layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    return found


def rotated(x: Tensor) -> Tensor:
    """Rotary embeddings, from their definition: entries i and i + d/2 turn as a complex number; (…, length, d)."""
    length, d = x.shape[-2:]
    angles = torch.arange(length).double()[:, None] * 500_000.0 ** (-2 * torch.arange(d // 2).double() / d)
    turned = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def direct(attention: nn.Module, x: Tensor, causal: bool = True) -> Tensor:
    """The largest logit of each head, float64, from what is projected."""
    d = attention.head_dim
    q, k = (
        rotated((x.double() @ projection.weight.double().T).unflatten(-1, (-1, d)).transpose(1, 2))
        for projection in (attention.q_proj, attention.k_proj)
    )
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.mT / math.sqrt(d)
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return logits.detach().amax((0, 2, 3))


@pytest.mark.parametrize("chunk", [1, 1500, 1 << 25])  # rows at once: 1, 5 or 2, all
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1)])
def test_largest_logits(monkeypatch: pytest.MonkeyPatch, heads: int, kv_heads: int, chunk: int) -> None:
    monkeypatch.setattr(attention_logits, "CHUNK", chunk)
    model, tokens = make_model(heads, kv_heads)
    expected_output = model(input_ids=tokens).logits
    inputs = inputs_of_attention(model, tokens)
    record_logits(model)
    assert torch.equal(model(input_ids=tokens).logits, expected_output)
    layers = [layer.self_attn for layer in model.model.layers]
    found = torch.stack([attention.max_logits for attention in layers])
    expected, uncovered = (
        torch.stack([direct(attention, x, causal) for attention, x in zip(layers, inputs, strict=True)])
        for causal in (True, False)
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (uncovered > expected * 1.001).any()  # what is hidden would show


def test_passes_are_merged_and_those_without_gradients_left_out() -> None:
    model, tokens = make_model()
    record_logits(model)
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        model(input_ids=tokens)
    assert not hasattr(attention, "max_logits")
    each = []
    for sequence in tokens:
        model(input_ids=sequence[None])
        each.append(attention.max_logits)
        del attention.max_logits
    for sequence in tokens:
        model(input_ids=sequence[None])
    assert torch.equal(attention.max_logits, torch.stack(each).amax(0))
    assert not attention.max_logits.requires_grad


def test_repeated_activations_change_nothing() -> None:
    model, tokens = make_model()
    record_logits(model)
    model(input_ids=tokens)
    attention = model.model.layers[0].self_attn
    once = attention.max_logits
    del attention.max_logits
    parallelize(model, TrainConfig(activation_checkpointing=True), ALONE, average=True)
    model(input_ids=tokens).logits.sum().backward()
    assert torch.equal(attention.max_logits, once)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1)])
def test_clip(heads: int, kv_heads: int) -> None:
    model, tokens = make_model(heads, kv_heads)
    first, second = (layer.self_attn for layer in model.model.layers)
    inputs = inputs_of_attention(model, tokens)
    record_logits(model)
    model(input_ids=tokens)
    before = [attention.max_logits for attention in (first, second)]
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    threshold = float(before[0].median())
    assert clip_logits(model, threshold, ALONE) == torch.stack(before).max()
    for attention, x, logits in zip((first, second), inputs, before, strict=True):
        after = direct(attention, x)
        assert (after <= threshold * (1 + 1e-5)).all()
        torch.testing.assert_close(after, logits.double().clamp(max=threshold), rtol=1e-5, atol=1e-5)
        assert not hasattr(attention, "max_logits")
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, state[name])}
    assert {name.split(".")[-2] for name in changed} <= {"q_proj", "k_proj"}


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    directory = tmp_path_factory.mktemp("clipped") / "run"
    assert main(["train", *tiny, CLIP, f"--out={directory}"]) == 0
    return directory


def test_a_clipped_run_tells_its_logits(clipped: Path, numbers) -> None:
    logits = [record["max_logit"] for record in numbers(clipped)]
    assert len(logits) == 40
    assert logits[0] > 1  # of the start
    assert all(0.05 < logit < 0.2 for logit in logits[2:])  # clipped after the step before, up to its update
    events = EventAccumulator(str(clipped / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("max_logit")] == pytest.approx(logits)


def test_a_threshold_that_nothing_exceeds(tmp_path: Path, clipped: Path, tiny: list[str], numbers) -> None:
    assert main(["train", *tiny, "--qk-clip=1e9", f"--out={tmp_path / 'high'}"]) == 0
    assert main(["train", *tiny, f"--out={tmp_path / 'none'}"]) == 0
    high = numbers(tmp_path / "high")
    assert max(record.pop("max_logit") for record in high) > 1
    assert high == numbers(tmp_path / "none")
    assert high[-1]["loss"] != numbers(clipped)[-1]["loss"]


def test_parts_of_a_batch(tmp_path: Path, clipped: Path, tiny: list[str], numbers) -> None:
    words = [*tiny, CLIP, "--accumulation=4", "--activation-checkpointing=True"]
    assert main(["train", *words, f"--out={tmp_path / 'run'}"]) == 0
    for parts, whole in zip(numbers(tmp_path / "run"), numbers(clipped), strict=True):
        assert parts == pytest.approx(whole, abs=1e-3)


def test_resume(tmp_path: Path, clipped: Path, tiny: list[str], numbers, fails) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, CLIP, "--save-every=20", f"--out={run}"]) == 0
    shutil.rmtree(run / "checkpoints" / "step-00000040")
    (run / "summary.json").unlink()
    assert "has qk_clip 0.05, which cannot become 100.0" in fails("train", "--resume", run, "--qk-clip=100")
    assert main(["train", f"--resume={run}"]) == 0
    assert numbers(run) == numbers(clipped)


def test_compare(tmp_path: Path, tiny: list[str]) -> None:
    words = [*tiny, CLIP, "--steps=3", "--optimizers", "lion", f"--out={tmp_path / 'out'}"]
    assert main(["compare", *words]) == 0
    [metrics] = (tmp_path / "out").glob("*/metrics.jsonl")
    assert all("max_logit" in json.loads(line) for line in metrics.read_text().splitlines())
