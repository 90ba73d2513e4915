"""Does the best learning rate stay the same as the model gets wider?"""

from experiments.entries import Contender, Experiment, Setting, crossed
from experiments.sets.contenders import MUON, QUARTER, changed, dion_with_tail

WIDTHS = (64, 128, 256, 512)

# For each `adjust_lr_fn` about the learning rate that makes updates of a size that suits a width of 128.
_CENTERS = {"spectral_unclamped": 0.04, "original": 0.04, "match_rms_adamw": 0.015, "none": 0.04}


def _adjusted(base: Contender) -> list[Contender]:
    return [
        Contender(
            name=f"{base.name}, {function}",
            optimizer=base.optimizer,
            lr=center,
            fraction=base.fraction,
            options=changed(base, function, adjust_lr_fn=function).options,
        )
        for function, center in _CENTERS.items()
    ]


def _width(width: int) -> Setting:
    """Return a model of four layers in the proportions of 1M, whose heads have 32 numbers."""
    heads = width // 32
    model = {"hidden_size": width, "ffn": width * 7 // 2, "heads": heads, "kv_heads": heads // 2}
    return Setting(name=f"width {width}", model=model, steps=150, seeds=(0,))


SET = Experiment(
    name="transfer",
    question="Does the best learning rate stay the same as the model gets wider, for each adjust_lr_fn?",
    entries=crossed((*_adjusted(MUON), *_adjusted(dion_with_tail(QUARTER))), map(_width, WIDTHS)),
    baseline="Muon, spectral_unclamped",
    shown="lr",
)
