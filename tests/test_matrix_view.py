"""How parameters are read as matrices: shapes, errors, and that nothing is left out or read twice."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, pad, unfold

from orthon.sharding.matrix_view import PLAIN, MatrixView


def matrices(param: Tensor, view: MatrixView) -> list[list[Tensor]]:
    """Return the matrices of each block, as `view` reads them, in the plainest way."""
    reading = view.read(param.shape)
    rows, cols = reading.sides
    whole = param.permute(*reading.batch, *rows, *cols)
    whole = whole.reshape(-1, *(torch.Size(param.shape[dim] for dim in dims).numel() for dims in (rows, cols)))
    per_index = whole.shape[1 + reading.blocked] // param.shape[reading.sides[reading.blocked][0]]
    parts = whole.split([size * per_index for size in reading.blocks], dim=1 + reading.blocked)
    return [list(part) for part in parts]


CONV = {"kind": "convolution"}


@pytest.mark.parametrize(
    ("view", "shape", "count", "blocks"),
    [
        pytest.param({}, (6, 4), 1, [(6, 4)], id="plain"),
        pytest.param({}, (5, 6, 4), 5, [(6, 4)], id="experts"),
        pytest.param({}, (2, 5, 6, 4), 10, [(6, 4)], id="any leading dims"),
        pytest.param({"transposed": True}, (5, 6, 4), 5, [(4, 6)], id="experts (E, in, out)"),
        pytest.param({"transposed": True}, (6, 4), 1, [(4, 6)], id="GPT-2's Conv1D"),
        pytest.param({"blocks": (8, 2, 2)}, (12, 4), 3, [(8, 4), (2, 4), (2, 4)], id="fused qkv"),
        pytest.param({"blocks": 2}, (12, 4), 2, [(6, 4)] * 2, id="gate and up"),
        pytest.param({"blocks": 2}, (5, 12, 4), 10, [(6, 4)] * 2, id="experts' gate and up"),
        pytest.param({"blocks": 2, "transposed": True}, (5, 4, 12), 10, [(6, 4)] * 2, id="(E, in, out) gate and up"),
        pytest.param({"blocks": (2, 1), "transposed": True}, (4, 3), 2, [(2, 4), (1, 4)], id="Conv1D, fused"),
        pytest.param({"blocks": 4, "side": "columns"}, (6, 8), 4, [(6, 2)] * 4, id="heads of an output"),
        pytest.param({"blocks": 4, "side": "columns", "transposed": True}, (8, 6), 4, [(6, 2)] * 4, id="of a Conv1D"),
        pytest.param(CONV, (6, 4, 3), 1, [(6, 12)], id="convolution over one dim"),
        pytest.param(CONV, (6, 4, 3, 5), 1, [(6, 60)], id="convolution"),
        pytest.param(CONV, (6, 1, 3, 5), 1, [(6, 15)], id="convolution of one channel"),
        pytest.param(CONV, (6, 4, 3, 5, 2), 1, [(6, 120)], id="convolution over three dims"),
        pytest.param(CONV | {"blocks": 2}, (6, 4, 3, 5), 2, [(3, 60)] * 2, id="groups"),
        pytest.param(CONV | {"transposed": True}, (6, 4, 3, 5), 1, [(4, 90)], id="transposed convolution"),
        pytest.param(CONV | {"transposed": True, "blocks": 2}, (6, 4, 3), 2, [(4, 9)] * 2, id="with groups"),
    ],
)
def test_shapes(view: dict[str, Any], shape: tuple[int, ...], count: int, blocks: list[tuple[int, int]]) -> None:
    reading = MatrixView(**view).read(shape)
    assert reading.shape == shape
    assert reading.count == count
    assert [reading.matrix(block) for block in range(len(reading.blocks))] == blocks
    found = matrices(torch.zeros(shape), MatrixView(**view))
    assert [tuple(part[0].shape) for part in found] == blocks
    assert sum(map(len, found)) == count


@st.composite
def views_and_shapes(draw: st.DrawFn) -> tuple[MatrixView, tuple[int, ...]]:
    size = st.integers(1, 5)
    transposed = draw(st.booleans())
    if draw(st.booleans()):
        groups = draw(st.integers(1, 3))
        channels = [draw(st.integers(2, 4)), draw(st.integers(2, 4))]
        channels[0] *= groups  # outputs, or inputs of a transposed convolution
        view = MatrixView(kind="convolution", transposed=transposed, blocks=groups)
        return view, (*channels, *draw(st.lists(size, min_size=1, max_size=3)))
    side = draw(st.sampled_from(["rows", "columns"]))
    blocks = draw(st.one_of(size, st.lists(size, min_size=1, max_size=4).map(tuple)))
    cut = sum(blocks) if isinstance(blocks, tuple) else blocks * draw(size)
    last = (cut, draw(size)) if (side == "rows") != transposed else (draw(size), cut)
    return MatrixView(transposed=transposed, blocks=blocks, side=side), (*draw(st.lists(size, max_size=2)), *last)


@given(views_and_shapes())
def test_every_number_is_in_one_matrix(case: tuple[MatrixView, tuple[int, ...]]) -> None:
    view, shape = case
    reading = view.read(shape)
    param = torch.arange(torch.Size(shape).numel()).reshape(shape)
    found = matrices(param, view)
    assert torch.equal(torch.cat([m.flatten() for part in found for m in part]).sort().values, param.flatten())
    assert [tuple(part[0].shape) for part in found] == [reading.matrix(b) for b in range(len(reading.blocks))]
    assert sum(map(len, found)) == reading.count


@given(views_and_shapes())
def test_round_trip(case: tuple[MatrixView, tuple[int, ...]]) -> None:
    view, shape = case
    assert MatrixView.of(view) is view
    assert MatrixView.of(view.as_dict()) == view
    again = MatrixView.of(json.loads(json.dumps(view.as_dict())))  # tuples become lists
    assert again == view
    assert hash(again) == hash(view)
    assert again.read(list(shape)) == view.read(torch.Size(shape))  # type: ignore[arg-type]


def test_text_names_what_differs() -> None:
    assert str(PLAIN) == "MatrixView()"
    assert str(MatrixView(transposed=True, blocks=(4, 2))) == "MatrixView(transposed=True, blocks=(4, 2))"


def test_rows_are_outputs_of_a_convolution_with_groups() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 2, 3, 3), torch.randn(1, 4, 5, 5)
    patches = unfold(x, 3)[0].chunk(2)
    parts = matrices(weight, MatrixView(kind="convolution", blocks=2))
    ours = torch.cat([part[0] @ patch for part, patch in zip(parts, patches, strict=True)])
    torch.testing.assert_close(ours.reshape(1, 6, 3, 3), conv2d(x, weight, groups=2))


def test_rows_are_outputs_of_a_transposed_convolution_with_groups() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(4, 3, 3, 3), torch.randn(1, 4, 5, 5)
    parts = matrices(weight, MatrixView(kind="convolution", transposed=True, blocks=2))
    # The gradient of an output channel in the middle by the inputs around it is its row, upside down.
    flipped = pad(x, (2, 2, 2, 2)).flip(-1, -2)
    patches = unfold(flipped, 3)[0].chunk(2)
    ours = torch.cat([part[0] @ patch for part, patch in zip(parts, patches, strict=True)])
    expected = conv_transpose2d(x, weight, groups=2).flip(-1, -2)
    torch.testing.assert_close(ours.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"kind": "conv"}, ValueError, "kind should be one of 'linear', 'convolution', but is 'conv'"),
        ({"side": "heads"}, ValueError, "side should be one of 'rows', 'columns', but is 'heads'"),
        ({"transposed": 1}, TypeError, "transposed should be True or False, but is 1"),
        ({"blocks": 0}, ValueError, "blocks should be an integer >= 1"),
        ({"blocks": True}, TypeError, "blocks should be an integer >= 1"),
        ({"blocks": 2.0}, TypeError, "blocks should be an integer >= 1"),
        ({"blocks": ()}, ValueError, "blocks should be an integer >= 1"),
        ({"blocks": [4, 0]}, ValueError, "blocks should be an integer >= 1"),
        ({"kind": "convolution", "blocks": (2, 2)}, ValueError, "the number of groups for a convolution"),
        ({"heads": 4}, ValueError, "takes blocks, kind, side, transposed, not 'heads'"),
        ("rows", TypeError, "should be a MatrixView or a mapping of its fields, but is 'rows'"),
    ],
)
def test_fields_that_are_not_allowed(fields: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MatrixView.of(fields)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (4,), "needs a shape of 2 dims or more, none of them 0, but it is \\(4,\\)"),
        ({}, (), "needs a shape of 2 dims"),
        ({}, (3, 0, 4), "none of them 0"),
        ({"blocks": 3}, (8, 4), "a number of blocks that divides 8"),
        ({"blocks": 3, "side": "columns"}, (6, 4), "a number of blocks that divides 4"),
        ({"blocks": (4, 2)}, (8, 4), "has blocks of 6 in all, but should have 8"),
        ({"blocks": (4, 2), "transposed": True}, (6, 4), "has blocks of 6 in all, but should have 4"),
        (CONV, (6, 4), "needs a shape of 3 dims"),
        (CONV | {"blocks": 4}, (6, 4, 3, 3), "a number of blocks that divides 6"),
        (CONV | {"blocks": 6}, (6, 1, 3, 3), "depthwise"),
        (CONV | {"blocks": 6}, (12, 1, 3, 3), "depthwise"),
        (CONV | {"blocks": 6, "transposed": True}, (6, 1, 3, 3), "depthwise"),
        (CONV | {"blocks": 6, "transposed": True}, (6, 2, 3, 3), "depthwise"),
    ],
)
def test_shapes_that_cannot_be_read(fields: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixView(**fields).read(shape)
