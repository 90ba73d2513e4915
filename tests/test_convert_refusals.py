"""What cannot be converted is refused with the reason, and what is taken for granted is noted."""

from typing import Any

import pytest
import torch
from torch import Tensor

from orthon.saving.convert import SOURCES, Conversion, convert_state, convert_states
from tests.support.foreign_groups import KELLER, MOONLIGHT, of_microsoft, torch_adamw, torch_muon, without


def start(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


MATRIX = start(6, 4)
BUFFER = {"momentum_buffer": MATRIX}
MOMENTS = {"step": torch.tensor(1.0), "exp_avg": MATRIX, "exp_avg_sq": MATRIX}
SMALL_DION = of_microsoft("dion", rank_fraction=0.5)
GROUP_0 = "state dict 0 (%s): param group 0: "


@pytest.mark.parametrize(
    ("source", "group", "state", "message"),
    [
        ("adamw", torch_adamw(), {}, "source should be one of 'torch-adamw', 'torch-muon'"),
        (
            "torch-adamw",
            torch_adamw(decoupled_weight_decay=False),
            MOMENTS,
            "'decoupled_weight_decay' is False, which means weight decay that is added to the gradient",
        ),
        ("torch-adamw", torch_adamw(momentum=0.9), {}, "'momentum' is 0.9, and orthon does not"),
        ("torch-adamw", without(torch_adamw(), "betas"), {}, "'betas' is missing"),
        ("torch-adamw", without(torch_adamw(), "amsgrad"), MOMENTS, "'amsgrad' is missing"),  # RAdam's
        ("torch-adamw", torch_adamw(betas=(1.0, 0.9)), {}, "betas should be two numbers in [0, 1)"),
        (
            "torch-adamw",
            torch_adamw(),
            {**MOMENTS, "max_exp_avg_sq": MATRIX},
            "parameter 0: entries should be 'step', 'exp_avg', 'exp_avg_sq' by its group, but are",
        ),
        ("torch-adamw", torch_adamw(), BUFFER, "are 'momentum_buffer'"),
        ("torch-adamw", torch_adamw(), {"step": 1}, "has no momentum; its entries are 'step'"),
        ("torch-adamw", torch_adamw(), {**MOMENTS, "step": "two"}, "'step': should be a number"),
        ("torch-adamw", torch_adamw(), {**MOMENTS, "step": 1.5}, "but is 1.5"),
        (
            "torch-adamw",
            torch_adamw(),
            {**MOMENTS, "exp_avg_sq": start(3)},
            "'exp_avg_sq': should have shape (6, 4) by its group, but has (3,)",
        ),
        ("torch-adamw", torch_adamw(), {**MOMENTS, "exp_avg": [1.0]}, "'exp_avg': should be a floating"),
        (
            "torch-muon",
            torch_muon(ns_coefficients=(2.0, -1.5, 0.5)),
            BUFFER,
            "'ns_coefficients' is (2.0, -1.5, 0.5), which is a polynomial that orthon does not have",
        ),
        ("torch-muon", torch_muon(ns_coefficients=3.0), BUFFER, "'ns_coefficients' is 3.0"),
        ("torch-muon", torch_muon(eps=0.1), BUFFER, "'eps' is 0.1, which damps updates"),
        (
            "torch-muon",
            torch_muon(adjust_lr_fn="none"),
            BUFFER,
            "'adjust_lr_fn' is 'none', which is no shape factor of torch's (allowed: None, 'original'",
        ),
        ("torch-muon", torch_muon(momentum=1.0), BUFFER, "momentum should be a number in [0, 1)"),
        (
            "torch-muon",
            torch_muon(),
            {"momentum_buffer": MATRIX.flatten()},
            "should be a matrix, but its momentum has shape (24,)",
        ),
        ("keller-muon", {**KELLER, "momentum": 0.9, "nesterov": True}, {}, "an earlier version"),
        (
            "keller-muon",
            {**KELLER, "momentum": 0.9},
            {"momentum_buffer": start(4, 3, 5, 3)},
            "a convolution whose kernel is higher than wide, (5, 3)",
        ),
        ("moonlight-muon", MOONLIGHT, BUFFER, "should have 'use_muon' True or False"),
        ("microsoft-dion", {**of_microsoft("muon"), "algorithm": "aro"}, {}, "algorithm is 'aro', which orthon"),
        (
            "microsoft-dion",
            SMALL_DION,
            {"momentum": MATRIX, "Q": start(4, 3)},
            "'Q': should have shape (4, 2) by its group, but has (4, 3)",
        ),
        ("microsoft-dion", SMALL_DION, {"momentum": MATRIX, "Q": start(5, 2)}, "'Q': should have shape (4, 2)"),
        ("microsoft-dion", without(SMALL_DION, "rank_fraction"), {}, "'rank_fraction' is missing"),
        (
            "microsoft-dion",
            of_microsoft("dion2", selection_scope="global_capped"),
            {},
            "'selection_scope' is 'global_capped', which leaves some",
        ),
        ("microsoft-dion", of_microsoft("dion2", num_heads=8), {}, "'num_heads' is 8, which is known for Muon"),
        ("microsoft-dion", of_microsoft("dion2", cautious_wd=True), {}, "'cautious_wd' is True, and"),
        ("microsoft-dion", of_microsoft("muon", num_heads=4), {"momentum": MATRIX}, "should have a number of blocks"),
        ("microsoft-dion", of_microsoft("muon", split_sizes=(4, 4)), {"momentum": MATRIX}, "has blocks of 8 in all"),
        ("microsoft-dion", of_microsoft("dion2", flatten=True), {"momentum": start(4, 3, 3)}, "'flatten' is True, and"),
        ("microsoft-dion", without(of_microsoft("adamw"), "step"), {}, "'step', the number"),
    ],
)
def test_refused(source: str, group: dict[str, Any], state: dict[str, Any], message: str) -> None:
    given = {"state": {0: state} if state else {}, "param_groups": [{**group, "params": [0]}]}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert_state(given, source=source)
    assert message in str(caught.value)
    if source in SOURCES:
        assert str(caught.value).startswith(GROUP_0 % source)


def test_square_matrices_of_a_sharded_dion_are_refused() -> None:
    state = {0: {"momentum": start(8, 4), "Q": start(8, 2)}, 1: {"momentum": start(4, 4), "Q": start(4, 2)}}
    given = {"state": state, "param_groups": [{**SMALL_DION, "params": [0, 1]}]}
    with pytest.raises(ValueError, match="the side of a square one is not in the file"):
        convert_state(given, source="microsoft-dion")
    del state[1]
    convert_state(given, source="microsoft-dion")


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ([], "should be an optimizer's state_dict(), with 'state' and 'param_groups', but is a list"),
        ({"model": {}}, "but is a dict with 'model'"),
        ({"state": [], "param_groups": []}, "'state' should be a dict of a dict for each parameter, but is a list"),
        ({"state": {}, "param_groups": {}}, "'param_groups' should be a list of dicts, each with a list 'params'"),
        ({"state": {}, "param_groups": [{"params": 0}]}, "each with a list 'params'"),
        ({"state": {3: {}}, "param_groups": [{"params": [0]}]}, "a state of parameter 3, which is in no group"),
        ({"state": {}, "param_groups": [{"params": [0], "param_names": []}]}, "'lr' is missing"),
        (
            {"state": {}, "param_groups": [{"params": [0], "param_names": ["a", "b"]}]},
            "should name 1 parameters, but has 2",
        ),
    ],
)
def test_no_state_dicts(state_dict: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert_state(state_dict, source="torch-adamw")
    assert message in str(caught.value)


def test_a_name_in_two_states_is_refused() -> None:
    given = {"state": {}, "param_groups": [torch_muon(params=[0], param_names=["w"])]}
    with pytest.raises(ValueError, match=r"state dict 1 .* parameter 'w' is in another group"):
        convert_states([(given, "torch-muon"), (given, "torch-muon")])


def test_notes_tell_what_is_not_in_the_file() -> None:
    def notes(source: str, group: dict[str, Any], state: dict[str, Any]) -> str:
        given = {"state": {0: state}, "param_groups": [{**group, "params": [0]}]}
        conversion: Conversion = convert_states([(given, source)])
        return " ".join(conversion.notes)

    older = without(torch_adamw(), "decoupled_weight_decay")
    assert "AdamW's or Adam's is not in the file" in notes("torch-adamw", older, MOMENTS)
    assert notes("torch-adamw", {**older, "weight_decay": 0.0}, MOMENTS) == ""
    moments = {"momentum": MATRIX, "variance_neuron": start(6, 1)}
    assert "earlier versions" in notes("microsoft-dion", of_microsoft("normuon", split_sizes=(4, 2)), moments)
    assert "earlier versions" not in notes("microsoft-dion", of_microsoft("normuon"), moments)
    assert "square" in notes("microsoft-dion", SMALL_DION, {"momentum": start(4, 4), "Q": start(4, 2)})
    assert "square" not in notes("microsoft-dion", SMALL_DION, {"momentum": MATRIX, "Q": start(4, 2)})
