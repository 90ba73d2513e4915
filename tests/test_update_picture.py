"""The picture of updates in docs/dion.md: what the text beside it says of their singular values."""

import pytest
from scripts.draw_update import ROWS, spectra


def test_muon_brings_all_to_one() -> None:
    momentum, update = spectra("Muon")
    assert momentum[-1] < 0.05 * momentum[0]
    assert update.sub(1).abs().max() < 1e-3


def test_the_papers_dion_keeps_a_quarter() -> None:
    _, update = spectra("Dion 1/4 of the paper")
    assert (update > 0.5).sum() == ROWS / 4
    assert update[ROWS // 4 :].max() < 1e-3


def test_the_tail_brings_the_others_to_its_size() -> None:
    _, update = spectra("Dion 1/4")
    assert update[: ROWS // 4].min() > 0.95
    assert update[ROWS // 4 :].square().mean().sqrt() == pytest.approx(0.7, abs=0.05)


def test_at_a_low_rank_the_first_get_more() -> None:
    _, update = spectra("Dion 1/16")
    assert 1.3 < update[0] < 2
