"""The table: what others have published, and the plan of the same work. docs/published.md says more about each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from benchmarks.published import models, planned

DION = "arXiv 2504.05295"
DION3 = "arXiv 2608.11612"
MUONSPHERE = "microsoft/dion#70"
MEGATRON = "NVIDIA/Megatron-LM#6676"
NVIDIA = "NVIDIA's blog on Megatron and emerging optimizers"

# Published and planned values are called near if they differ by no more than this factor.
NEAR = 1.5


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        what: was measured.
        where: the GPUs.
        source: where it is published.
        said: the figure.
        unit: "ms", "%" or "times".
        plan: returns Orthon's figure, in seconds, as a part, or as a ratio.
    """

    what: str
    where: str
    source: str
    said: float
    unit: str
    plan: Callable[[], float]

    def planned(self) -> float:
        """Return Orthon's figure in the unit. It is computed once."""
        return _computed(self.plan) * {"ms": 1e3, "%": 1e2, "times": 1.0}[self.unit]


@cache
def _computed(plan: Callable[[], float]) -> float:
    return plan()


def _muon_longer(adamw: float, muon: float) -> float:
    """Return how many percent of Muon's training step it takes longer than AdamW's, from their rates for the model."""
    return 100 * (1 - muon / adamw)


ROWS = (
    Published(
        "NorMuon, 14B, plain Newton-Schulz", "8 B200, FSDP2", f"{DION3}, table 5", 174.1, "ms",
        lambda: planned.dion3_14b("NorMuon"),
    ),
    Published(
        "NorMuon, 14B, Gram form", "8 B200, FSDP2", f"{DION3}, table 5", 158.5, "ms",
        lambda: planned.dion3_14b("NorMuon, Gram"),
    ),
    Published(
        "NorMuon, 14B, Gram form and symmetric kernels", "8 B200, FSDP2", f"{DION3}, table 5", 127.0, "ms",
        lambda: planned.dion3_14b("NorMuon, Gram"),
    ),
    Published(
        "Dion3 1/4, 14B", "8 B200, FSDP2", f"{DION3}, table 5", 38.1, "ms",
        lambda: planned.dion3_14b("Dion3 1/4"),
    ),
    Published(
        "Dion3 1/4 without moments of rows, 14B", "8 B200, FSDP2", f"{DION3}, table 5", 34.8, "ms",
        lambda: planned.dion3_14b("Dion2 1/4"),
    ),
    Published(
        "Muon, 14B, plain Newton-Schulz", "8 B200, FSDP2", f"{DION3}, table 5", 153.8, "ms",
        lambda: planned.dion3_14b("Muon"),
    ),
    Published(
        "Muon, 7B, plain Newton-Schulz", "4 GH200, FSDP2", f"{DION3}, table 6", 360.6, "ms",
        lambda: planned.dion3_7b("Muon"),
    ),
    Published(
        "Dion3 1/4, 7B", "4 GH200, FSDP2", f"{DION3}, table 6", 68.6, "ms",
        lambda: planned.dion3_7b("Dion3 1/4"),
    ),
    Published(
        "Dion3 1/4 without moments of rows, 7B", "4 GH200, FSDP2", f"{DION3}, table 6", 59.6, "ms",
        lambda: planned.dion3_7b("Dion2 1/4"),
    ),
    Published(
        "NorMuon of a step of 452 ms, 1.06B", "8 B200, FSDP2", MUONSPHERE, 6.1, "%",
        lambda: planned.dion3_1b("NorMuon, Gram"),
    ),
    Published(
        "Muon of a step of 452 ms, 1.06B", "8 B200, FSDP2", MUONSPHERE, 5.8, "%",
        lambda: planned.dion3_1b("Muon, Gram"),
    ),
    Published(
        "Muon, work repeated (632 ms) over work dealt out (157 ms)", "32 GB300, TP 2", MEGATRON, 632 / 157, "times",
        planned.layer_sharding,
    ),
    Published(
        "Muon beyond AdamW, of a step of Kimi K2", "256 GB300", NVIDIA, _muon_longer(1051, 1029), "%",
        lambda: planned.of_mixture(
            models.KIMI_K2, layers=15, experts=384, width=7168, inner=2048, ranks=64, rate=51e12
        ),
    ),
    Published(
        "Muon beyond AdamW, of a step of Qwen3-30B-A3B", "8 GB300", NVIDIA, _muon_longer(713, 686), "%",
        lambda: planned.of_mixture(
            models.QWEN3_30B, layers=48, experts=128, width=2048, inner=768, ranks=8, rate=35e12
        ),
    ),
    Published(
        "five Newton-Schulz steps of 16384², bfloat16", "H100", DION, 297, "ms",
        lambda: planned.polar_seconds(planned.H100, (1, 16_384, 16_384)),
    ),
    Published(
        "Cholesky QR of 16384², float32", "H100", DION, 395, "ms",
        lambda: planned.cholesky_qr_seconds(planned.H100, 16_384, 16_384),
    ),
    Published(
        "Newton-Schulz of three layers of LLaMA-3 70B", "H100", f"{DION3}, appendix E", 897, "ms",
        lambda: planned.polar_seconds(planned.H100, (9, 8192, 28_672), (6, 8192, 8192), (6, 1024, 8192)),
    ),
    Published(
        "Newton-Schulz of 216 experts' matrices of Kimi K2 and a dense one", "H100", f"{DION3}, appendix E", 315, "ms",
        lambda: planned.polar_seconds(planned.H100, (216, 2048, 7168), (1, 7168, 18_432)),
    ),
)  # fmt: skip


def table() -> str:
    """Return all rows in Markdown, and how many are near."""
    lines = ["| what | where | source | said | planned | planned / said |", "| --- | --- | --- | --: | --: | --: |"]
    near = 0
    for row in ROWS:
        value = row.planned()
        ratio = value / row.said
        near += 1 / NEAR <= ratio <= NEAR
        unit = "" if row.unit == "times" else f" {row.unit}"
        lines.append(
            f"| {row.what} | {row.where} | {row.source} | {row.said:.4g}{unit} | {value:.3g}{unit} | {ratio:.2f} |"
        )
    return "\n".join([*lines, "", f"{near} of {len(ROWS)} are within a factor of {NEAR}."])
