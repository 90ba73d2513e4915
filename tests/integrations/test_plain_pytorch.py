"""Training loops of plain PyTorch, in the style of nanoGPT's and nanochat's, in which one line is changed."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

import orthon
from tests.integrations.support.processes import launch

VOCABULARY, WIDTH, LENGTH, STEPS, ACCUMULATED, CLIP = 24, 16, 8, 12, 2, 1.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.c_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.c_proj(scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.c_out(nn.functional.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """A small GPT whose output head is its embedding, as nanoGPT's is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList([Block(), Block()])
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return cross_entropy(self.lm_head(self.ln_f(x)).flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay: float, lr: float, kind: str) -> torch.optim.Optimizer:
        params = {name: p for name, p in self.named_parameters() if p.requires_grad}
        matrices = [(name, p) for name, p in params.items() if p.dim() >= 2]
        rest = [(name, p) for name, p in params.items() if p.dim() < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0},
        ]  # fmt: skip
        if kind == "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
        if kind == "groups by dim":  # the same lines; what is no matrix goes to AdamW
            return orthon.Dion(groups, lr=lr, others="adamw", rank_fraction=0.5)
        return orthon.Dion.for_model(self, lr=lr, weight_decay=weight_decay, rank_fraction=0.5)


def batch(step: int) -> tuple[Tensor, Tensor]:
    start = torch.randint(VOCABULARY, (8, 1), generator=torch.Generator().manual_seed(step))
    tokens = (start + torch.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1], tokens[:, 1:]


def factor(step: int) -> float:
    """A warmup and a cosine."""
    return (step + 1) / 3 if step < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))


def remember(optimizer: torch.optim.Optimizer) -> None:
    """Keep each group's own learning rate. In a resumed run that comes before a checkpoint is loaded."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(STEPS)) -> list[float]:
    """nanochat's loop: each group remembers its own learning rate, and one factor is for all."""
    remember(optimizer)
    losses = []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(step)
        total = 0.0
        for micro_step in range(ACCUMULATED):
            loss = model(*batch(ACCUMULATED * step + micro_step)) / ACCUMULATED
            total += loss.item()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return losses


@pytest.mark.parametrize(("kind", "lr"), [("adamw", 3e-3), ("groups by dim", 0.02), ("for_model", 0.02)])
def test_one_line_is_changed(kind: str, lr: float) -> None:
    model = GPT()
    losses = train(model, model.configure_optimizers(0.1, lr, kind))
    assert losses[-1] < losses[0] - 0.1


def test_which_rule_updates_what() -> None:
    model = GPT()
    names = dict.fromkeys(["wte.weight", "wpe.weight"], "adamw")
    for optimizer, embeddings in (
        (model.configure_optimizers(0.1, 0.02, "for_model"), "adamw"),
        (model.configure_optimizers(0.1, 0.02, "groups by dim"), "dion"),  # a list does not tell what is an embedding
    ):
        assert isinstance(optimizer, orthon.MixedOptimizer)
        rules = {member.name: member.rule.name for member in optimizer.members()}
        assert {rules[name] for name in names} == {embeddings}
        assert rules["h.0.c_fc.weight"] == "dion"
        assert rules["ln_f.weight"] == "adamw"


def test_one_number_for_all_groups_is_warned_of() -> None:
    """nanoGPT's loop sets one number, which is right for optimizers whose groups have the same learning rate."""
    model = GPT()
    optimizer = model.configure_optimizers(0.1, 0.02, "for_model")
    for group in optimizer.param_groups:
        group["lr"] = 0.02 * factor(0)
    model(*batch(0)).backward()
    with pytest.warns(UserWarning, match="all param groups have the learning rate"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = model.configure_optimizers(0.1, 0.02, "groups by dim")
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * factor(0)
        optimizer.step()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()


NESTINGS: dict[str, Any] = {
    "compile(DDP)": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
    "DDP(compile)": lambda m: DistributedDataParallel(torch.compile(m, backend="eager")),
    "compile(DDP(compile))": lambda m: torch.compile(
        DistributedDataParallel(torch.compile(m, backend="eager")), backend="eager"
    ),
    "DDP": DistributedDataParallel,
    "compile": lambda m: torch.compile(m, backend="eager"),
}


def in_blocks(model: GPT) -> nn.Module:
    for block in model.h:
        block.compile(backend="eager")
    return DistributedDataParallel(model)


NESTINGS["DDP, blocks compiled"] = in_blocks


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of")
@pytest.mark.parametrize("made_of", ["model", "wrapped"])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_ddp_and_compile_in_every_nesting(nesting: str, made_of: str) -> None:
    """Names have `module.` and `_orig_mod.` in any order; the optimizer does not depend on it."""
    plain = GPT()
    expected = train(plain, right := orthon.Dion.for_model(plain, lr=0.02), range(4))
    model = GPT()
    wrapped = NESTINGS[nesting](model)
    optimizer = orthon.Dion.for_model(wrapped if made_of == "wrapped" else model, lr=0.02)
    assert (optimizer._replicas is not None) == (made_of == "wrapped" and nesting != "compile")
    assert [g["name"] for g in optimizer.param_groups] == [g["name"] for g in right.param_groups]
    assert train(wrapped, optimizer, range(4)) == expected
    saved = optimizer.state_dict()
    again = GPT()
    again.load_state_dict(model.state_dict())
    resumed = orthon.Dion.for_model(again, lr=0.02)
    resumed.load_state_dict(saved)
    assert train(again, resumed, range(4, 6)) == train(wrapped, optimizer, range(4, 6))


def test_fsdp2_and_dcp_on_two_processes(tmp_path: Path) -> None:
    said = launch("fsdp_run", str(tmp_path))
    words = [line.split()[1:] for line in said.splitlines() if line.startswith("LOSSES")]
    model = GPT()
    expected = train(model, orthon.Dion.for_model(model, lr=0.02), range(8))
    for losses in words:
        assert [float(loss) for loss in losses] == pytest.approx(expected, rel=1e-4)
