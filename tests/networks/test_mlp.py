"""MlpPolicy and ValueFunction: spaces, initialisation, actions for the environment."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform
from update_cases import CASES, Case

from trpo_fast import MaskedCategorical, MlpPolicy, MultiCategorical, ValueFunction
from trpo_fast.environments.flattening import action_converter
from trpo_fast.environments.nested_actions import ActionNesting, is_nested_space

OBS = spaces.Box(-1.0, 1.0, (5,))


def policy_of(space: spaces.Space, **keywords: Any) -> MlpPolicy:
    return MlpPolicy(OBS, space, generator=torch.Generator().manual_seed(0), **keywords)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_of_every_kind(case: Case) -> None:
    policy = policy_of(case.action_space, **case.keywords)
    obs = torch.randn(7, 5)
    d = policy(obs)
    actions = d.sample()
    assert d.batch_shape == (7,)
    assert d.log_prob(actions).shape == (7,)
    assert torch.isfinite(d.log_prob(actions)).all()
    nested = is_nested_space(case.action_space)
    for row in action_converter(policy, case.action_space)(actions):
        action = ActionNesting(case.action_space).one(row) if nested else row
        assert case.action_space.contains(action), (action, case.action_space)
    best = policy.mode(d)
    if not nested:
        assert best.shape == actions.shape
    assert (d.log_prob(best) >= d.log_prob(actions) - 1e-6).all()


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Box(-1.0, 1.0, (2, 3)), (2, 3)),
        (spaces.Box(-1.0, 1.0, ()), ()),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), (2, 2)),
        (spaces.MultiBinary([2, 2]), (2, 2)),
    ],
)
def test_actions_of_any_shape(space: spaces.Space, shape: tuple[int, ...]) -> None:
    policy = policy_of(space)
    actions = policy(torch.randn(3, 5)).sample()
    assert actions.shape == (3, max(math.prod(shape), 1))
    in_env = policy.to_env(actions)
    assert in_env.shape == (3, *shape)
    for row in in_env:
        assert space.contains(row.numpy())


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-3, 3, (2,), dtype=np.int64),
        spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])}),
        spaces.Tuple([spaces.Box(-3, 3, (2,), dtype=np.int64)]),
        spaces.Text(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_actions_list_what_is_supported(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"supported: Box.*Discrete.*MultiDiscrete.*MultiBinary"):
        policy_of(space)


def test_unsupported_observations_list_what_is_supported() -> None:
    for space in (spaces.Text(3), spaces.Sequence(spaces.Discrete(2))):
        with pytest.raises(ValueError, match=r"supported: Box.*Dict or Tuple"):
            MlpPolicy(space, spaces.Discrete(2))
        with pytest.raises(ValueError, match=r"supported: Box.*Dict or Tuple"):
            ValueFunction(space)


@pytest.mark.parametrize(
    ("space", "width"),
    [
        (spaces.Box(-1, 1, (3, 4)), 12),
        (spaces.Discrete(6), 6),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.MultiBinary(4), 4),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (3,))}), 5),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), 5),
    ],
)
def test_observation_spaces_are_flattened(space: spaces.Space, width: int) -> None:
    policy, value = MlpPolicy(space, spaces.Discrete(2)), ValueFunction(space)
    assert policy.obs_width == value.obs_width == width
    assert policy(torch.zeros(3, width)).batch_shape == (3,)
    assert value(torch.zeros(3, width)).shape == (3,)


class TestForward:
    def test_obs_are_cast_and_flattened(self) -> None:
        policy = MlpPolicy(spaces.Box(-1, 1, (2, 3)), spaces.Discrete(2))
        value = ValueFunction(spaces.Box(-1, 1, (2, 3)))
        obs = torch.randn(4, 2, 3, dtype=torch.float64)
        assert torch.equal(policy(obs).logits, policy(obs.float().flatten(1)).logits)
        assert torch.equal(value(obs), value(obs.float().flatten(1)))
        assert policy(torch.zeros(4, 6, dtype=torch.uint8)).logits.dtype is torch.float32

    def test_one_observation(self) -> None:
        policy = policy_of(spaces.Discrete(3))
        assert policy(torch.zeros(5)).batch_shape == ()

    @pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 5, 2), ()])
    def test_wrong_width(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected \[N, 5\]"):
            policy_of(spaces.Discrete(3))(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"expected \[N, 5\]"):
            ValueFunction(OBS)(torch.zeros(shape))

    def test_masks(self) -> None:
        obs = torch.randn(4, 5)
        mask = torch.tensor([[True, False, True]] * 4)
        d = policy_of(spaces.Discrete(3))(obs, action_mask=mask)
        assert isinstance(d, MaskedCategorical)
        assert (d.probs[:, 1] == 0).all()
        mask = torch.tensor([[True, False, True, True, False]] * 4)
        joint = policy_of(spaces.MultiDiscrete([2, 3]))(obs, action_mask=mask)
        assert isinstance(joint, MultiCategorical)
        assert (joint.sample((50,))[..., 0] == 0).all()
        assert (joint.sample((50,))[..., 1] < 2).all()
        assert type(policy_of(spaces.Discrete(3))(obs)) is Categorical
        for space in (spaces.Box(-1, 1, (3,)), spaces.MultiBinary(3)):
            with pytest.raises(ValueError, match="needs a Discrete or MultiDiscrete"):
                policy_of(space)(obs, action_mask=torch.ones(4, 3, dtype=torch.bool))
        empty = torch.ones(4, 3, dtype=torch.bool)
        empty[2] = False
        with pytest.raises(ValueError, match=r"no action at index \[2\]"):
            policy_of(spaces.Discrete(3))(obs, action_mask=empty)


class TestInitialisation:
    def test_orthogonal_with_gain_sqrt_2_and_a_small_last_layer(self) -> None:
        policy = policy_of(spaces.Box(-1, 1, (2,)))
        first, second, last = policy.body[0], policy.body[2], policy.body[4]
        for layer, gain in ((first, math.sqrt(2)), (second, math.sqrt(2)), (last, 0.01)):
            w = layer.weight.detach().double()
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            assert torch.allclose(
                gram, gain**2 * torch.eye(len(gram), dtype=torch.float64), atol=1e-5
            )
            assert not layer.bias.detach().any()
        value = ValueFunction(OBS)
        assert float(value.body[-1].weight.detach().norm()) == pytest.approx(1.0, rel=1e-5)

    def test_the_first_policy_hardly_depends_on_the_observation(self) -> None:
        probs = policy_of(spaces.Discrete(4))(torch.randn(100, 5)).probs.detach()
        assert float((probs - 0.25).abs().max()) < 0.02

    @pytest.mark.parametrize("ortho_init", [True, False])
    def test_a_generator_decides_and_the_global_one_is_left_alone(self, ortho_init: bool) -> None:
        state = torch.get_rng_state()
        made = [
            MlpPolicy(
                OBS,
                spaces.Discrete(2),
                ortho_init=ortho_init,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in (1, 1, 2)
        ]
        value = ValueFunction(
            OBS, ortho_init=ortho_init, generator=torch.Generator().manual_seed(1)
        )
        assert torch.equal(torch.get_rng_state(), state)
        weights = [policy.body[0].weight for policy in made]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert torch.equal(weights[0], value.body[0].weight)

    def test_torchs_own_initialisation(self) -> None:
        policy = policy_of(spaces.Discrete(2), ortho_init=False)
        bound = 1 / math.sqrt(5)
        w = policy.body[0].weight.detach()
        assert float(w.abs().max()) <= bound
        assert float(w.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert policy.body[0].bias.detach().any()

    @pytest.mark.parametrize("state_dependent", [False, True])
    def test_log_std_init(self, state_dependent: bool) -> None:
        policy = policy_of(
            spaces.Box(-1, 1, (2,)), log_std_init=-1.2, state_dependent_std=state_dependent
        )
        scale = policy(torch.zeros(1, 5)).stddev
        assert torch.allclose(scale, torch.full((1, 2), math.exp(-1.2)))

    @pytest.mark.parametrize(
        ("log_std", "deviation"), [(-1.2, math.exp(-1.2)), (0.0, 0.5), (-9.0, math.exp(-5))]
    )
    def test_log_std_init_of_a_beta_is_in_units_of_half_the_range(
        self, log_std: float, deviation: float
    ) -> None:
        box, choice = spaces.Box(-3, 3, (2,)), spaces.Discrete(2)
        for space in (box, spaces.Tuple([choice, box, choice])):
            policy = policy_of(space, distribution="beta", log_std_init=log_std)
            found = policy(torch.zeros(1, 5))
            parts = [found] if space is box else found.parts
            beta = parts[0] if space is box else parts[1]
            torch.testing.assert_close(2 * beta.stddev, torch.full((1, 2), deviation))
            torch.testing.assert_close(beta.mean, torch.full((1, 2), 0.5))
            if space is not box:
                torch.testing.assert_close(parts[0].probs, torch.full((1, 2), 0.5))

    @pytest.mark.parametrize(
        ("keywords", "text"),
        [
            ({"activation": "swish"}, "known: identity, tanh"),
            ({"hidden_sizes": (0,)}, "widths"),
            ({"hidden_sizes": (2.5,)}, "widths"),
            ({"hidden_sizes": (math.inf,)}, "widths"),
            ({"hidden_sizes": 64}, r"such as \(64, 64\), got 64"),
            ({"hidden_sizes": "64"}, r"such as \(64, 64\), got '64'"),
            ({"distribution": "squashed"}, "needs a Box"),
            ({"state_dependent_std": True}, "needs a Box"),
        ],
    )
    def test_bad_arguments(self, keywords: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            policy_of(spaces.Discrete(2), **keywords)

    @pytest.mark.parametrize("distribution", ["squashed", "beta"])
    @pytest.mark.parametrize("bound", [np.inf, 3e38, 1e300])
    def test_bounds_that_cannot_be_rescaled_to(self, bound: float, distribution: str) -> None:
        box = spaces.Box(-bound, bound, (2,), np.float64)
        with pytest.raises(ValueError, match=r"needs finite bounds.* action is Box"):
            policy_of(box, distribution=distribution)


class TestToEnv:
    def test_a_plain_gaussian_is_clipped(self) -> None:
        policy = policy_of(spaces.Box(np.array([-1.0, -np.inf], np.float32), 2.0))
        found = policy.to_env(torch.tensor([[-5.0, -5.0], [9.0, 1.5]]))
        assert found.tolist() == [[-1.0, -5.0], [2.0, 1.5]]

    def test_a_scaled_gaussian_is_in_units_of_two_finite_bounds(self) -> None:
        low, high = [-1, 0, -np.inf, 2, -3e38], [1, 8, 5, 2, 3e38]
        policy = policy_of(spaces.Box(np.float32(low), np.float32(high)), scale_actions=True)
        found = policy.to_env(torch.tensor([[0.25, 0.5, -7, 9, 0.5], [-2, -2, 9, 0, 4]]))
        assert (
            found.tolist() == torch.tensor([[0.25, 6, -7, 2, 1.5e38], [-1, 0, 5, 2, 3e38]]).tolist()
        )
        assert policy.action_units is not None
        assert policy_of(spaces.Box(-1, 1, (2,)), scale_actions=True).action_units is None

    @pytest.mark.parametrize(
        ("box", "actions", "expected"),
        [
            (spaces.Box(0, 4, ()), [0.5, -9], [3, 0]),
            (spaces.Box(3, 3, (1,)), [[7], [-7]], [[3], [3]]),
            (spaces.Box(0, 4, (1,), np.float16), [[0.5], [9]], [[3], [4]]),
            (spaces.Box(0, 4, (1, 2), np.float64), [[0.5, 9]], [[[3, 4]]]),
            # Beyond float32, in which the policy computes: as without bounds.
            (spaces.Box(-1e300, 1e300, (1,), np.float64), [[0.5], [-7]], [[0.5], [-7]]),
            (spaces.Box(0, 1e300, (1,), np.float64), [[0.5], [-7]], [[0.5], [0]]),
        ],
        ids=str,
    )
    def test_units_of_odd_boxes(self, box: spaces.Box, actions: Any, expected: Any) -> None:
        policy = policy_of(box, scale_actions=True)
        assert policy.to_env(torch.tensor(actions, dtype=torch.float32)).tolist() == expected
        assert policy.double().to_env(torch.tensor(actions, dtype=torch.float64)).tolist() == (
            expected
        )

    def test_a_squashed_gaussian_is_rescaled_and_never_leaves_the_box(self) -> None:
        low, high = np.array([-1.0, 0.1], np.float32), np.array([3.0, 0.7], np.float32)
        policy = policy_of(spaces.Box(low, high), distribution="squashed")
        u = torch.tensor([[0.0, 0.0], [50.0, 50.0], [-50.0, -50.0], [0.3, -0.8]])
        found = policy.to_env(u)
        assert torch.allclose(found[0], torch.tensor([1.0, 0.4]))
        assert torch.equal(found[1], torch.tensor(high))
        assert torch.equal(found[2], torch.tensor(low))
        expected = torch.tensor(low) + (torch.tanh(u[3]) + 1) / 2 * torch.tensor(high - low)
        assert torch.allclose(found[3], expected)

    def test_log_prob_is_that_of_the_action_before_tanh(self) -> None:
        policy = policy_of(spaces.Box(-2.0, 3.0, (2,)), distribution="squashed")
        d = policy(torch.randn(50, 5))
        u = d.sample()
        squashed = TransformedDistribution(d, [TanhTransform(), AffineTransform(0.5, 2.5)])
        change = squashed.log_prob(policy.to_env(u)) - d.log_prob(u)
        jacobian = torch.log(2.5 * (1 - torch.tanh(u) ** 2)).sum(1)
        assert torch.allclose(change, -jacobian, atol=1e-3)

    def test_discrete_spaces_that_start_elsewhere(self) -> None:
        policy = policy_of(spaces.Discrete(3, start=-4))
        assert policy.to_env(torch.tensor([0, 1, 2])).tolist() == [-4, -3, -2]
        policy = policy_of(spaces.MultiDiscrete([2, 3], start=[10, 20]))
        assert policy.to_env(torch.tensor([[0, 2], [1, 0]])).tolist() == [[10, 22], [11, 20]]

    def test_squashing_needs_finite_bounds(self) -> None:
        with pytest.raises(ValueError, match="'squashed' needs finite bounds"):
            policy_of(spaces.Box(-np.inf, 1.0, (2,)), distribution="squashed")


def test_bounds_move_with_the_module_but_are_not_in_the_state_dict() -> None:
    policy = policy_of(spaces.Box(-1.0, 1.0, (2,)))
    assert not any("action" in name for name in policy.state_dict())
    assert policy.to("meta").action_low.device.type == "meta"


def test_deepcopy_and_state_dict() -> None:
    policy = policy_of(spaces.Box(-1.0, 1.0, (2,)), distribution="squashed")
    obs = torch.randn(3, 5)
    twin = copy.deepcopy(policy)
    other = MlpPolicy(OBS, spaces.Box(-1.0, 1.0, (2,)), distribution="squashed")
    other.load_state_dict(policy.state_dict())
    for copied in (twin, other):
        assert torch.equal(copied(obs).mean, policy(obs).mean)


def test_gaussians_are_joint() -> None:
    d = policy_of(spaces.Box(-1.0, 1.0, (4,)))(torch.randn(3, 5))
    assert isinstance(d, Independent)
    assert isinstance(d.base_dist, Normal)
    assert d.event_shape == (4,)
