"""Policies on images and nested observations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from structured_cases import Pictures, nested

from trpo_fast import (
    CnnPolicy,
    CnnValueFunction,
    MultiInputPolicy,
    MultiInputValueFunction,
    TRPOOptimizer,
)
from trpo_fast.environments.packing import ObservationPacker
from trpo_fast.rollouts.observations import StructuredObservations

SPACE = Pictures.observation_space


def shown(rows, seed=0):
    packer = ObservationPacker(SPACE)
    view = StructuredObservations(packer, 10.0)
    return view(torch.from_numpy(packer(nested(rows, seed))))


@pytest.mark.parametrize(
    ("shape", "dtype", "filters", "features"),
    [
        ((84, 84, 4), np.uint8, [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)], 512),
        ((3, 36, 40), np.uint8, [(32, 3, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)], 512),
        ((10, 10, 4), bool, [(16, 4, 3, 3)], 128),
        ((7, 7, 3), np.uint8, [(16, 3, 3, 3)], 128),
        ((2, 3, 3), np.float32, [(16, 2, 3, 3)], 128),
    ],
)
def test_the_network_is_chosen_by_the_images_size(shape, dtype, filters, features):
    torch.manual_seed(0)
    space = spaces.Box(0, 1 if dtype is bool else 255, shape, dtype)
    # a narrow last layer: its first weights take seconds to draw
    policy = CnnPolicy(space, spaces.Discrete(3), image_features=8)
    convolutions = [p for p in policy.parameters() if p.ndim == 4]
    assert [tuple(p.shape) for p in convolutions] == filters
    value = CnnValueFunction(space, encoder=policy.encoder)
    batch = torch.as_tensor(np.stack([space.sample() for _ in range(5)]))
    assert policy(batch).logits.shape == (5, 3)
    assert value(batch).shape == (5,)
    if max(shape) < 36:
        assert CnnPolicy(space, spaces.Discrete(3)).encoder.width == features


@pytest.mark.parametrize("last", [True, False])
def test_shades_are_scaled_by_their_bounds_and_channels_found(last):
    space = spaces.Box(0, 255, (5, 6, 2) if last else (2, 5, 6), np.uint8)
    encoder = CnnPolicy(space, spaces.Discrete(2)).encoder
    (part,) = encoder.parts
    images = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    planes = images.permute(0, 3, 1, 2) if last else images
    expected = part.convolutions[0](planes.float() / 255).relu().flatten(1)
    torch.testing.assert_close(encoder(images), part.last(expected).relu())


def test_each_part_becomes_features():
    policy = MultiInputPolicy(SPACE, spaces.Discrete(3), image_features=7)
    obs = shown(4)
    found = policy.encoder(obs)
    # the space's order: picture, body/speed, body/gear, rest/0, rest/1
    assert found.shape == (4, 7 + 2 + 4 + 3 + 5)
    assert torch.equal(found[:, 7:9], obs["body"]["speed"])
    assert torch.equal(found[:, 9:13], torch.eye(4)[obs["body"]["gear"]])
    assert torch.equal(found[:, 13:16], obs["rest"][0].float())
    two, three = obs["rest"][1].unbind(1)
    assert torch.equal(found[:, 16:], torch.cat([torch.eye(2)[two], torch.eye(3)[three]], 1))
    assert MultiInputValueFunction(SPACE)(obs).shape == (4,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda o: o.pop("rest"), "obs has no entry 'rest'"),
        (lambda o: o["body"].pop("speed"), r"obs \(at body\) has no entry 'speed'"),
        (lambda o: o.update(rest=o["rest"][:1]), r"obs \(at rest\) has no entry 1"),
        (lambda o: o.update(picture=o["picture"].float()), r"\(at picture\) holds torch.float32"),
        (
            lambda o: o["body"].update(gear=o["body"]["gear"] / 2),
            r"\(at body/gear\) holds",
        ),
        (
            lambda o: o.update(picture=o["picture"][:, :5]),
            r"picture\) has shape \(4, 5, 6, 2\)",
        ),
        (lambda o: o.update(picture=(o["picture"],)), r"\(at picture\) is a tuple"),
        (lambda o: o["body"]["speed"].fill_(torch.nan), r"obs\['body'\]\['speed'\]\[0, 0\] is nan"),
    ],
)
def test_a_bad_batch_is_named_by_its_path_and_moves_nothing(change, text):
    torch.manual_seed(0)
    policy = MultiInputPolicy(SPACE, spaces.Discrete(3), image_features=4)
    before = [p.clone() for p in policy.parameters()]
    optimizer, obs = TRPOOptimizer(policy), shown(4)
    change(obs)
    with pytest.raises(ValueError, match=text):
        optimizer.step(obs=obs, actions=torch.zeros(4), advantages=torch.arange(4.0))
    assert all(map(torch.equal, before, policy.parameters()))


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (4,)), SPACE, spaces.Box(-np.inf, np.inf, (9, 9, 3))]
)
def test_a_cnn_is_for_images(space):
    with pytest.raises(ValueError, match="CnnPolicy is for images"):
        CnnPolicy(space, spaces.Discrete(2))


def test_the_same_generator_gives_the_same_weights():
    def weights():
        generator = torch.Generator().manual_seed(3)
        policy = MultiInputPolicy(SPACE, spaces.Box(-1, 1, (2,)), (8,), generator=generator)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    state = torch.get_rng_state()
    assert torch.equal(weights(), weights())
    assert torch.equal(torch.get_rng_state(), state)
