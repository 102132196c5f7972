"""What networks are shown of packed observations."""

from __future__ import annotations

import numpy as np
import torch
from structured_cases import Pictures, nested

from trpo_fast.environments.packing import ObservationPacker
from trpo_fast.rollouts.observations import StructuredObservations


def test_the_nesting_is_the_environments_and_images_keep_their_bytes():
    packer, batch = ObservationPacker(Pictures.observation_space), nested(4)
    rows = torch.from_numpy(packer(batch)).reshape(2, 2, -1)
    shown = StructuredObservations(packer, 10.0, normalize=False)(rows)
    assert list(shown) == list(Pictures.observation_space)  # the space's order
    assert shown["picture"].dtype == torch.uint8
    assert shown["picture"].data_ptr() == rows.data_ptr() + packer.leaves[0].columns.start
    np.testing.assert_array_equal(shown["picture"].flatten(0, 1), batch["picture"])
    assert shown["body"]["speed"].dtype == torch.float32
    np.testing.assert_allclose(shown["body"]["speed"].flatten(0, 1), batch["body"]["speed"], 1e-6)
    np.testing.assert_array_equal(shown["body"]["gear"].flatten(), batch["body"]["gear"] - 2)
    assert isinstance(shown["rest"], tuple)


def test_vectors_are_normalised_by_what_was_seen_and_nothing_else_is():
    packer = ObservationPacker(Pictures.observation_space)
    view = StructuredObservations(packer, 10.0)
    seen = packer(nested(64))
    speeds = nested(64)["body"]["speed"]
    valid = np.arange(64) < 50
    view.observe(seen, valid)
    np.testing.assert_allclose(view(torch.from_numpy(seen))["body"]["speed"][0], 10.0)  # clipped
    view.commit()
    shown = view(torch.from_numpy(seen))
    mean, std = speeds[:50].mean(0), speeds[:50].std(0)
    np.testing.assert_allclose(shown["body"]["speed"], (speeds - mean) / std, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(shown["picture"], nested(64)["picture"])
    other = StructuredObservations(packer, 10.0)
    other.load_state_dict(view.state_dict())
    again = other(torch.from_numpy(seen))["body"]["speed"]
    assert torch.equal(again, shown["body"]["speed"])
