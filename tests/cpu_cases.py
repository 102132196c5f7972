"""Policies with a batch for the native CPU backend, and the float64 reference beside them.

Importable without the native module, which only ``Case.native`` needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import pytest
import torch
from update_cases import relative

from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import BatchReader, fused_batch
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters

if TYPE_CHECKING:
    from trpo_fast.backends.cpu.problem import CpuProblem

CPU = torch.device("cpu")
# Widths that end within a vector register, on its end and just past it, and no hidden layer.
every_shape = pytest.mark.parametrize(
    ("obs_dim", "hidden", "actions"),
    [
        (1, (1,), 1),
        (3, (), 2),
        (17, (64, 64), 6),
        (65, (17, 65), 3),
        (348, (65, 348, 3), 17),
        (5, (130, 16), 70),
        (11, (640,), 3),
    ],
)
every_row_count = pytest.mark.parametrize("rows", [1, 97, 600])


@dataclass
class Case:
    network: Network
    parameters: FlatParameters
    batch: Batch

    def native(self, options: Options | None = None) -> CpuProblem:
        from trpo_fast.backends.cpu.problem import CpuProblem

        # "auto" would round the larger cases' products where the CPU has an instruction for it.
        options = options or Options(precision="fp32")
        return CpuProblem(self.network, self.parameters, self.batch, options)


def case(
    rows: int = 200,
    obs_dim: int = 17,
    space: gym.spaces.Space[Any] | None = None,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    dtype: torch.dtype = torch.float32,
    frozen: tuple[str, ...] = (),
) -> Case:
    """A policy away from its initialisation, and a batch that it gave some updates ago."""
    torch.manual_seed(rows)
    space = space or gym.spaces.Box(-1, 1, (6,))
    policy = MlpPolicy(gym.spaces.Box(-1, 1, (obs_dim,)), space, hidden, activation).to(dtype)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p) / p.shape[-1] ** 0.5)
    obs = torch.randn(rows, obs_dim, dtype=dtype)
    distribution = policy(obs)
    actions = distribution.sample()
    advantages = torch.randn(rows, dtype=dtype)
    log_prob = distribution.log_prob(actions).detach() + 0.05 * torch.randn(rows, dtype=dtype)
    network = network_of(policy)
    assert isinstance(network, Network), network
    named = {n: p for n, p in policy.named_parameters() if n not in frozen}
    parameters = FlatParameters(list(named.values()), list(named))
    reader = BatchReader(obs, None, dtype=dtype, device=CPU)
    batch = reader.batch(actions, advantages, log_prob, None)
    return Case(network, parameters, fused_batch(batch, network.head, obs_dim, dtype))


def double(c: Case) -> tuple[ReferenceProblem, Case]:
    """The same numbers in float64, for the reference to be exact on."""
    tensors = {id(t): t.detach().double() for t in c.network.tensors()}
    layers = tuple(
        type(layer)(
            tensors[id(layer.weight)],
            None if layer.bias is None else tensors[id(layer.bias)],
            layer.activation,
            layer.parameter,
        )
        for layer in c.network.layers
    )
    log_std = None if c.network.log_std is None else tensors[id(c.network.log_std)]
    network = Network(layers, c.network.head, log_std)
    parameters = FlatParameters([tensors[id(t)] for t in c.parameters.tensors], c.parameters.names)
    b = c.batch
    actions = b.actions
    if actions is not None and actions.is_floating_point():
        actions = actions.double()
    assert b.advantages is not None
    assert b.old_log_prob is not None
    batch = Batch(b.rows, b.obs.double(), actions, b.advantages.double(), b.old_log_prob.double())
    return ReferenceProblem(network, parameters, batch, Options()), Case(network, parameters, batch)


def assert_matches_reference(c: Case, tolerance: float = 1e-5) -> None:
    """Gradient, product and a candidate's figures against the reference in float64."""
    native = c.native()
    reference, _ = double(c)
    loss, g = native.surrogate_gradient()
    exact_loss, exact_g = reference.surrogate_gradient()
    assert loss == pytest.approx(exact_loss, rel=tolerance, abs=tolerance)
    assert relative(g, exact_g) < tolerance
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert relative(native.fisher_product(v.to(g.dtype)), reference.fisher_product(v)) < tolerance
    theta = c.parameters.read() + 0.01 * g / g.norm()
    candidate, kl = native.evaluate(theta)
    exact_candidate, exact_kl = reference.evaluate(theta.double())
    assert candidate == pytest.approx(exact_candidate, rel=10 * tolerance, abs=tolerance)
    assert kl == pytest.approx(exact_kl, rel=100 * tolerance, abs=1e-10)
