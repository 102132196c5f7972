"""Observations in rows of bytes: what goes in comes out, in its own dtype."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from structured_cases import Pictures, nested

from trpo_fast.base.errors import UnsupportedSpaceError
from trpo_fast.environments.packing import ObservationPacker


def test_leaves_come_out_as_they_went_in():
    packer, batch = ObservationPacker(Pictures.observation_space), nested(5)
    rows = packer(batch)
    dirty = np.full_like(rows, 77)
    np.testing.assert_array_equal(packer(batch, dirty), rows)  # the gaps between leaves, too
    assert (rows.dtype, rows.shape) == (np.uint8, (5, packer.width))
    found = {leaf.path: leaf.of(rows) for leaf in packer.leaves}
    np.testing.assert_array_equal(found["picture",], batch["picture"])
    np.testing.assert_array_equal(found["body", "speed"], batch["body"]["speed"])
    np.testing.assert_array_equal(found["body", "gear"], batch["body"]["gear"] - 2)  # from 0
    np.testing.assert_array_equal(found["rest", 0], batch["rest"][0])
    np.testing.assert_array_equal(found["rest", 1], batch["rest"][1])
    kinds = {path: leaf.dtype.name for path, leaf in found.items()}
    assert kinds["picture",] == "uint8"
    assert kinds["body", "speed"] == "float64"
    one = packer.one({**nested(), "picture": batch["picture"][0]})
    np.testing.assert_array_equal(packer.leaves[0].of(one), batch["picture"][0])


def test_an_image_is_a_row_of_its_own_size():
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    assert ObservationPacker(space).width == 84 * 84 * 4


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(np.float16, np.float32), (np.uint16, np.int32), (np.uint32, np.int64), (bool, bool)],
)
def test_dtypes_that_torch_lacks_are_widened(dtype, kept):
    high = 1 if dtype is bool else 100
    packer = ObservationPacker(spaces.Box(0, high, (3,), dtype))
    values = np.array([[0, 1, high]], dtype)
    (leaf,) = packer.leaves
    found = leaf.of(packer(values))
    assert found.dtype == kept
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("space", "where"),
    [
        (spaces.Dict(a=spaces.Dict(word=spaces.Text(4))), r"Text \(at a/word\)"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))]), r"Sequence \(at"),
        (spaces.Dict(g=spaces.Graph(spaces.Box(0, 1, (2,)), None)), r"Graph \(at g\)"),
        (spaces.Dict(n=spaces.Box(0, 9, (2,), np.uint64)), r"uint64 \(at n\)"),
    ],
)
def test_what_has_no_fixed_size_is_refused_by_its_path(space, where):
    with pytest.raises(UnsupportedSpaceError, match=where):
        ObservationPacker(space)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda o: o.pop("rest"), "has no entry rest"),
        (lambda o: o["body"].pop("gear"), r"observation \(at body\), a dict, has no entry gear"),
        (lambda o: o.update(body=3), r"observation \(at body\), a int, has no entry speed"),
        (lambda o: o["body"].update(gear=9), r"\(at body/gear\) holds 9"),
        (lambda o: o.update(picture=o["picture"] / 2.0), r"\(at picture\) holds .*uint8"),
        (lambda o: o.update(picture=o["picture"][:5]), r"\(at picture\) have shape \(1, 5, 6, 2\)"),
        (lambda o: o.update(rest=o["rest"][:1]), r"\(at rest\), a tuple, has no entry 1"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(change, text):
    observation = nested()
    change(observation)
    with pytest.raises(ValueError, match=text):
        ObservationPacker(Pictures.observation_space).one(observation)


def test_numbers_that_are_none_are_named_by_their_path():
    packer, batch = ObservationPacker(Pictures.observation_space), nested(3)
    batch["body"]["speed"][1, 1] = np.inf
    rows = packer(batch)
    np.testing.assert_array_equal(packer.bad_rows(rows), [False, True, False])
    assert packer.bad_place(rows[1]) == " (at body/speed)"
    assert packer.bad_number(rows[1]) == "inf at index 1 (at body/speed)"
    finite = packer.finite_rows(np.stack([rows, packer(nested(3))]))
    assert [finite(0), finite(1)] == [False, True]
