"""trpo_fast.tianshou.TRPO beside tianshou's own, on the same batches and in its own trainer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

tianshou = pytest.importorskip(
    "tianshou", reason="tianshou is not installed: pip install '.[test]'"
)
from tianshou.algorithm import TRPO as THEIRS  # noqa: E402
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy  # noqa: E402
from tianshou.algorithm.optim import AdamOptimizerFactory  # noqa: E402
from tianshou.data import Batch, Collector, CollectStats, VectorReplayBuffer  # noqa: E402
from tianshou.env import DummyVectorEnv  # noqa: E402
from tianshou.trainer import OnPolicyTrainerParams  # noqa: E402
from tianshou.utils.net.common import Net  # noqa: E402
from tianshou.utils.net.continuous import (  # noqa: E402
    ContinuousActorProbabilistic,
    ContinuousCritic,
)
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic  # noqa: E402

from trpo_fast.tianshou import TRPO  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Backtracking to step"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]
WIDTH, ACTIONS, ROWS = 5, 3, 200
# Ten plain iterations, as tianshou's solver has it.
PLAIN = {"preconditioner": "none", "precision": "fp32", "cg_tol": 0.0, "cg_iters": 10}


def joint_normal(parameters: tuple[Tensor, Tensor]) -> Distribution:
    return Independent(Normal(*parameters), 1)


def categorical(logits: Tensor) -> Distribution:
    return Categorical(logits=logits)


class Convolutional(nn.Module):
    """Takes the rows as pictures, in tianshou's manner."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 4, 2), nn.Flatten(), nn.Linear(16, ACTIONS))

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        rows = torch.as_tensor(obs, dtype=torch.float32)
        return self.body(rows.unsqueeze(1)), state


def body(width: int = WIDTH) -> Net:
    return Net(state_shape=width, hidden_sizes=[16, 16], activation=nn.Tanh)


def gaussian_actor(**keywords: Any) -> nn.Module:
    return ContinuousActorProbabilistic(
        preprocess_net=body(), action_shape=ACTIONS, **{"unbounded": True, **keywords}
    )


def discrete_actor() -> nn.Module:
    return DiscreteActor(preprocess_net=body(), action_shape=ACTIONS, softmax_output=False)


BOX, DISCRETE = spaces.Box(-1.0, 1.0, (ACTIONS,)), spaces.Discrete(ACTIONS)
ACTORS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Distribution], Any, str]] = {
    "gaussian": (gaussian_actor, joint_normal, BOX, "fused"),
    "bounded": (lambda: gaussian_actor(unbounded=False), joint_normal, BOX, "generic"),
    "discrete": (discrete_actor, categorical, DISCRETE, "fused"),
    "convolutional": (Convolutional, categorical, DISCRETE, "generic"),
}


def made(kind: Any, actor: nn.Module, dist_fn: Any, space: Any, **keywords: Any) -> Any:
    policy = ProbabilisticActorPolicy(
        actor=actor, dist_fn=dist_fn, action_space=space, action_scaling=False,
        action_bound_method=None,
    )  # fmt: skip
    policy.is_within_training_step = True
    torch.manual_seed(11)
    critic = ContinuousCritic(preprocess_net=body())
    optim = AdamOptimizerFactory(lr=1e-3)
    return kind(policy=policy, critic=critic, optim=optim, **keywords)


def batch_of(algorithm: Any, rows: int = ROWS) -> Batch:
    torch.manual_seed(5)
    obs = torch.randn(rows, WIDTH)
    with torch.no_grad():
        found = algorithm.policy(Batch(obs=obs, info=Batch()))
        return Batch(
            obs=obs, act=found.act, adv=torch.randn(rows), returns=torch.randn(rows),
            logp_old=found.dist.log_prob(found.act), info=Batch(),
        )  # fmt: skip


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", ACTORS)
def test_a_step_is_tianshous(name: str) -> None:
    make, dist_fn, space, path = ACTORS[name]
    torch.manual_seed(0)
    actor = make()
    start, found, figures = flat(actor), [], []
    for kind in (THEIRS, TRPO):
        algorithm = made(kind, copy.deepcopy(actor), dist_fn, space, optim_critic_iters=3)
        if kind is TRPO:
            algorithm.policy_optimizer.param_groups[0].update(PLAIN)
        batch = batch_of(algorithm)
        np.random.seed(1)  # noqa: NPY002
        stats = algorithm._update_with_batch(batch, None, 1)
        figures.append([stats.actor_loss.mean, stats.vf_loss.mean, stats.kl.mean])
        found.append(torch.cat([flat(algorithm.policy.actor) - start, flat(algorithm.critic)]))
    assert algorithm.policy_optimizer.path == path
    assert algorithm.last_result.accepted
    assert figures[1] == pytest.approx(figures[0], rel=1e-2, abs=1e-6)
    moved = float(found[0][: len(start)].norm())
    assert moved > 1e-3
    assert float((found[1] - found[0])[: len(start)].norm()) < 1e-2 * moved
    assert torch.allclose(found[1][len(start) :], found[0][len(start) :], atol=1e-5)


def test_the_options_are_tianshous_and_followed() -> None:
    algorithm = made(
        TRPO, gaussian_actor(), joint_normal, BOX,
        max_kl=0.003, backtrack_coeff=0.5, max_backtracks=7,
    )  # fmt: skip
    algorithm._update_with_batch(batch_of(algorithm), None, 1)
    group = algorithm.policy_optimizer.param_groups[0]
    assert (group["max_kl"], group["backtrack_coeff"], group["max_backtracks"]) == (0.003, 0.5, 6)
    assert group["damping"] == 0.1
    assert 0 < algorithm.last_result.kl <= 0.003
    algorithm.max_kl = 1e-4
    algorithm._update_with_batch(batch_of(algorithm), None, 1)
    assert 0 < algorithm.last_result.kl <= 1e-4


@pytest.mark.parametrize("critic_iters", [0, 2])
@pytest.mark.parametrize("name", ["gaussian", "bounded"])
def test_torchs_default_device_is_left_alone(name: str, critic_iters: int) -> None:
    make, dist_fn, space, _ = ACTORS[name]
    algorithm = made(TRPO, make(), dist_fn, space, optim_critic_iters=critic_iters)
    batch = batch_of(algorithm)
    with torch.device("meta"):  # nothing can be read from a tensor made there
        stats = algorithm._update_with_batch(batch, None, 1)
    assert algorithm.last_result.accepted
    assert (stats.vf_loss.mean > 0) == (critic_iters > 0)


def test_minibatches_and_repeats() -> None:
    algorithm = made(TRPO, discrete_actor(), categorical, DISCRETE, optim_critic_iters=1)
    stats = algorithm._update_with_batch(batch_of(algorithm), 100, 3)
    assert len(stats.kl.__dict__) > 0
    steps = {int(s["step"]) for s in algorithm.optim._optim.state.values()}
    assert steps == {6}


def test_the_kl_is_joint_where_dist_fn_leaves_the_dimensions_apart() -> None:
    results = []
    for dist_fn in (joint_normal, lambda x: Normal(*x)):
        torch.manual_seed(0)
        algorithm = made(TRPO, gaussian_actor(), dist_fn, BOX)
        algorithm._update_with_batch(batch_of(algorithm), None, 1)
        results.append((algorithm.last_result.kl, algorithm.last_result.loss_after))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_trunk_that_the_critic_shares_is_moved_by_the_trust_region_alone() -> None:
    trunk = body()
    actor = DiscreteActor(preprocess_net=trunk, action_shape=ACTIONS, softmax_output=False)
    algorithm = made(TRPO, actor, categorical, DISCRETE)
    algorithm.critic = DiscreteCritic(preprocess_net=trunk)
    algorithm.optim = algorithm._create_optimizer(algorithm.critic, AdamOptimizerFactory(lr=0.1))
    batch = batch_of(algorithm)
    head = flat(algorithm.critic.last)
    algorithm._update_with_batch(batch, None, 1)
    assert algorithm.last_result.accepted
    assert not torch.equal(flat(algorithm.critic.last), head)
    with torch.no_grad():
        # What the trust region measured still holds after the critic's fit.
        ratio = torch.exp(algorithm.policy(batch).dist.log_prob(batch.act) - batch.logp_old)
        loss = -(ratio * batch.adv).mean()
    assert float(loss) == pytest.approx(algorithm.last_result.loss_after, rel=1e-4)
    assert all(p.requires_grad for p in actor.parameters())


def test_a_policy_with_its_own_forward_goes_through_a_closure() -> None:
    class Sharper(ProbabilisticActorPolicy):  # type: ignore[misc]
        def forward(self, batch: Any, state: Any = None) -> Any:
            found = super().forward(batch, state)
            found.dist = Categorical(logits=2 * found.dist.logits)
            return found

    algorithm = made(TRPO, discrete_actor(), categorical, DISCRETE)
    algorithm.policy.__class__ = Sharper
    algorithm._update_with_batch(batch_of(algorithm), None, 1)
    assert algorithm.policy_optimizer.path_reason == "a closure can compute anything"
    assert algorithm.last_result.accepted


def test_observations_in_a_batch_go_through_a_closure() -> None:
    class Split(Convolutional):
        def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
            return super().forward(torch.cat([obs.left, obs.right], 1), state)

    algorithm = made(TRPO, Convolutional(), categorical, DISCRETE, optim_critic_iters=0)
    batch = batch_of(algorithm)
    algorithm.policy.actor.__class__ = Split
    batch.obs = Batch(left=batch.obs[:, :2], right=batch.obs[:, 2:])
    algorithm._update_with_batch(batch, None, 1)
    assert algorithm.last_result.accepted


def test_copies_and_state_dicts_hold_nothing_of_ours() -> None:
    ours = made(TRPO, discrete_actor(), categorical, DISCRETE)
    theirs = made(THEIRS, discrete_actor(), categorical, DISCRETE)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(flat(theirs.policy), flat(ours.policy))
    twin = copy.deepcopy(ours)
    before = flat(ours)
    twin._update_with_batch(batch_of(twin), None, 1)
    assert torch.equal(flat(ours), before)
    assert not torch.equal(flat(twin.policy), flat(ours.policy))


@pytest.mark.slow
def test_it_learns_in_tianshous_trainer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        env = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(4)])
        env.seed(0)
        policy = ProbabilisticActorPolicy(
            actor=DiscreteActor(preprocess_net=body(4), action_shape=2, softmax_output=False),
            dist_fn=categorical, action_space=spaces.Discrete(2), action_scaling=False,
            action_bound_method=None,
        )  # fmt: skip
        algorithm = TRPO(
            policy=policy, critic=ContinuousCritic(preprocess_net=body(4)),
            optim=AdamOptimizerFactory(lr=1e-2), optim_critic_iters=20, max_kl=0.02,
        )  # fmt: skip
        collector = Collector[CollectStats](algorithm, env, VectorReplayBuffer(4000, 4))
        test = Collector[CollectStats](
            algorithm, DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")])
        )
        result = algorithm.run_training(
            OnPolicyTrainerParams(
                training_collector=collector,
                test_collector=test,
                max_epochs=3,
                epoch_num_steps=8000,
                collection_step_num_env_steps=1000,
                test_step_num_episodes=5,
                batch_size=None,
                update_step_num_repetitions=1,
                verbose=False,
                show_progress=False,
            )
        )
    assert algorithm.policy_optimizer.path == "fused"
    assert result.best_reward > 100  # a random policy: about 20
