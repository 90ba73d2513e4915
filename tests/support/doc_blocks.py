"""The blocks of Python in the pages of the documentation, and what those pages take for given."""

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->\s*$", re.DOTALL)
_PRINTS = re.compile(r"^\s*<!-- prints -->\s*```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of Python.

    Attributes:
        line: of the page, where its text begins.
        text: what it says, without the indentation of its fence.
        not_run: why it is not run; "" if it is.
        prints: what the page says that it prints; None if it says nothing.
    """

    line: int
    text: str
    not_run: str
    prints: str | None

    @property
    def included(self) -> list[str]:
        """The files that it includes."""
        return re.findall(r'^--8<-- "(.+)"$', self.text, flags=re.MULTILINE)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of Python in a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if not re.match(r"python\b|\{ *\.python\b", found["info"]):
            continue
        code = re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        reason = _NOT_RUN.search(text[: found.start()])
        prints = _PRINTS.match(text[found.end() :])
        line = text[: found.start("text")].count("\n") + 1
        yield Block(line, code, reason[1] if reason else "", prints[1] if prints else None)


def missing_names(code: str, known: Mapping[str, Any]) -> set[str]:
    """Return the names that code reads before it sets them, that pages take for given, and that are not known yet."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    set_at = {node.id: node.lineno for node in reversed(names) if isinstance(node.ctx, ast.Store)}
    read = {
        node.id for node in names if isinstance(node.ctx, ast.Load) and node.lineno <= set_at.get(node.id, node.lineno)
    }
    return read & GIVEN.keys() - known.keys()


class Attention(nn.Module):
    """Attention with one head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        result: Tensor = self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return result


class Layer(nn.Module):
    """A layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.self_attn = nn.LayerNorm(16), Attention()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm(x))
        result: Tensor = x + self.mlp(x)
        return result


class Model(nn.Module):
    """A transformer that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(16, 40, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), tokens[:, 1:].flatten())


def _data() -> list[Tensor]:
    return list(torch.randint(40, (3, 2, 9)))


def _experts() -> nn.Module:
    experts = nn.Module()
    experts.up = nn.Parameter(torch.randn(2, 16, 32))
    return experts


# By name, what makes it. A page that reads such a name need not make it.
GIVEN: Mapping[str, Callable[[], Any]] = {
    "torch": lambda: torch,
    "nn": lambda: nn,
    "model": Model,
    "make_model": lambda: Model,
    "data": _data,
    "batches": lambda: itertools.cycle(_data()),
    "total_steps": lambda: 100,
    "matrices": lambda: [nn.Parameter(torch.randn(16, 16))],
    "the_rest": lambda: [nn.Parameter(torch.randn(16))],
    "some": lambda: [nn.Parameter(torch.randn(16, 16))],
    "others": lambda: [nn.Parameter(torch.randn(16, 32))],
    "qkv": lambda: nn.Linear(4096, 6144, device="meta"),
    "experts": _experts,
    "o_proj": lambda: nn.Linear(64, 64),
    "mesh": lambda: init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard")),
}
