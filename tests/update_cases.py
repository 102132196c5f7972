"""Heads, batches and a float64 dense oracle that the tests of the update share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mpmath  # which torch brings
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence
from torch.func import functional_call, jacrev, vmap

from trpo_fast import JointDistribution, MlpPolicy
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.networks.distributions import in_double
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import BatchReader, fused_batch
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.batch import Batch
from trpo_fast.update.parameters import FlatParameters


@dataclass(frozen=True)
class Case:
    """One kind of action distribution."""

    name: str
    action_space: spaces.Space
    keywords: dict[str, Any]
    masked: bool = False
    torch_error: float = 0.0  # relative, of torch's own second derivatives in float64


# torch.special.polygamma(1, x), in which digamma is differentiated, is 5e-10 off at x = 1.
TRIGAMMA_ERROR = 2e-9
CASES = [
    Case("gaussian", spaces.Box(-2.0, 3.0, (3,)), {"log_std_init": -0.3}),
    Case("gaussian_state_std", spaces.Box(-2.0, 3.0, (2,)), {"state_dependent_std": True}),
    Case("squashed", spaces.Box(-2.0, 3.0, (2,)), {"distribution": "squashed"}),
    Case(
        "squashed_state_std",
        spaces.Box(-2.0, 3.0, (2,)),
        {"distribution": "squashed", "state_dependent_std": True},
    ),
    Case("categorical", spaces.Discrete(4), {}),
    Case("categorical_masked", spaces.Discrete(5), {}, masked=True),
    Case("multi_categorical", spaces.MultiDiscrete([2, 4, 3]), {}),
    Case("multi_categorical_masked", spaces.MultiDiscrete([3, 4]), {}, masked=True),
    Case("bernoulli", spaces.MultiBinary(3), {}),
    Case(
        "beta",
        spaces.Box(-2.0, 3.0, (3,)),
        {"distribution": "beta"},
        torch_error=TRIGAMMA_ERROR,
    ),
]
HYBRID_SPACE = spaces.Dict(
    {
        "grip": spaces.Tuple([spaces.Box(-2.0, 3.0, (2,)), spaces.Discrete(3)]),
        "lamps": spaces.MultiBinary(2),
        "move": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(0.0, 1.0, ())]),
    }
)
CASES += [
    Case("joint", HYBRID_SPACE, {"log_std_init": -0.3}),
    Case(
        "joint_masked",
        HYBRID_SPACE,
        {"distribution": "beta"},
        masked=True,
        torch_error=TRIGAMMA_ERROR,
    ),
]
BY_NAME = {case.name: case for case in CASES}
# The backends that serve parameters on the CPU.
HOST_BACKENDS = [name for name, backend in ANALYTIC.items() if backend.device != "cuda"]
OBS_WIDTH = 5


class Wrapped(nn.Module):
    """A user's module that the recogniser cannot follow: always the generic path."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        return self.inner(obs.neg().neg(), action_mask=action_mask)  # the same bits


def make_policy(
    case: Case,
    hidden: tuple[int, ...] = (7, 6),
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    obs_width: int = OBS_WIDTH,
) -> MlpPolicy:
    """A policy whose last layer is not small, so that every head is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    observation_space = spaces.Box(-1.0, 1.0, (obs_width,))
    policy = MlpPolicy(
        observation_space,
        case.action_space,
        hidden,
        activation,
        generator=generator,
        **case.keywords,
    )
    with torch.no_grad():
        last = policy.body[-1]
        last.weight.mul_(50)
        last.bias.add_(0.2 * torch.randn(last.bias.shape, generator=generator))
    return policy.to(dtype)


def make_data(
    policy: MlpPolicy, case: Case, rows: int = 40, seed: int = 0, *, weighted: bool = False
) -> dict[str, Any]:
    """Keyword arguments of ``step``; old log-probabilities are those of the policy itself."""
    generator = torch.Generator().manual_seed(1000 + seed)
    dtype = policy.body[0].weight.dtype
    obs = torch.randn(rows, policy.obs_width, generator=generator).to(dtype)
    mask = None
    if case.masked:
        mask = torch.rand(rows, sum(policy.head.nvec), generator=generator) > 0.4
        for block in mask.split(list(policy.head.nvec), dim=1):
            block[:, 0] = True
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        distribution = policy(obs, action_mask=mask)
        actions = distribution.sample()
        if isinstance(distribution, JointDistribution):
            actions = distribution.flatten(actions)
        old_log_prob = distribution.log_prob(actions)
    data = {
        "obs": obs,
        "actions": actions,
        "advantages": torch.randn(rows, generator=generator).to(dtype),
        "old_log_prob": old_log_prob,
    }
    if mask is not None:
        data["action_mask"] = mask
    if weighted:
        weights = torch.rand(rows, generator=generator).to(dtype)
        weights[::5] = 0
        data["weights"] = weights
    return data


def flat_of(policy: nn.Module) -> FlatParameters:
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    return FlatParameters([p for _, p in named], [name for name, _ in named])


def read_batch(policy: nn.Module, data: dict[str, Any]) -> Batch:
    flat = flat_of(policy)
    reader = BatchReader(data["obs"], data.get("weights"), dtype=flat.dtype, device=flat.device)
    return reader.batch(
        data["actions"], data["advantages"], data.get("old_log_prob"), data.get("action_mask")
    )


def recognised(policy: MlpPolicy, data: dict[str, Any]) -> tuple[Network, Batch]:
    network = network_of(policy)
    assert isinstance(network, Network), network
    batch = read_batch(policy, data)
    dtype = network.layers[0].weight.dtype
    return network, fused_batch(batch, network.head, policy.obs_width, dtype)


def shares(data: dict[str, Any]) -> Tensor:
    """``w_n / sum(w)`` ``[N]`` in float64."""
    rows = len(data["advantages"])
    weights = data.get("weights")
    w = torch.ones(rows, dtype=torch.float64) if weights is None else weights.double()
    return w / w.sum()


def _gaussian_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    variance = torch.exp(2 * policy.log_std.double())
    return torch.diag(1 / variance).expand(len(outputs), -1, -1)


def _state_std_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    mean, log_std = outputs.chunk(2, dim=1)
    diagonal = torch.cat([torch.exp(-2 * log_std), torch.full_like(mean, 2.0)], dim=1)
    return torch.diag_embed(diagonal)


def _bernoulli_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    p = 1 / (1 + torch.exp(-outputs))
    return torch.diag_embed(p * (1 - p))


def _categories_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    dense = torch.zeros(len(outputs), outputs.shape[1], outputs.shape[1], dtype=torch.float64)
    start = 0
    for size in policy.head.nvec:
        block = slice(start, start + size)
        weight = torch.exp(outputs[:, block])
        if mask is not None:
            weight = weight * mask[:, block]
        p = weight / weight.sum(1, keepdim=True)
        dense[:, block, block] = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        start += size
    return dense


def _beta_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """The Hessian of the log-normaliser by mpmath's trigamma, softplus's slopes on both sides."""
    of_alpha, of_beta = (1 + torch.nn.functional.softplus(outputs)).chunk(2, dim=1)
    own = torch.diag_embed(torch.cat([_trigamma(of_alpha), _trigamma(of_beta)], dim=1))
    width = of_alpha.shape[1]
    pairs = torch.eye(width, dtype=torch.float64).repeat(2, 2)
    common = _trigamma(of_alpha + of_beta).repeat(1, 2).unsqueeze(2) * pairs
    slopes = torch.sigmoid(outputs)
    return slopes.unsqueeze(2) * (own - common) * slopes.unsqueeze(1)


def _trigamma(x: Tensor) -> Tensor:
    rows = [[float(mpmath.psi(1, value)) for value in row] for row in x.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def _joint_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """The parts' along the diagonal."""
    dense = torch.zeros(len(outputs), outputs.shape[1], outputs.shape[1], dtype=torch.float64)
    first = scale = allowed = 0
    for head in policy.head.heads:
        log_std = None
        if head.kind == "gaussian":
            log_std = policy.log_std[scale : scale + head.width]
            scale += head.width
        own = None if mask is None else mask[:, allowed : allowed + sum(head.nvec)]
        allowed += sum(head.nvec)
        block = slice(first, first + head.outputs)
        part: Any = SimpleNamespace(head=head, log_std=log_std)
        dense[:, block, block] = HEAD_FISHERS[head.kind](part, outputs[:, block], own)
        first += head.outputs
    return dense


# Each written out from textbooks.
HEAD_FISHERS: dict[str, Callable[[MlpPolicy, Tensor, Tensor | None], Tensor]] = {
    "gaussian": _gaussian_fisher,
    "gaussian_state_std": _state_std_fisher,
    "categorical": _categories_fisher,
    "multi_categorical": _categories_fisher,
    "bernoulli": _bernoulli_fisher,
    "beta": _beta_fisher,
    "joint": _joint_fisher,
}


def head_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Dense Fisher matrices ``[N, K, K]`` of the head's outputs."""
    return HEAD_FISHERS[policy.head.kind](policy, outputs, mask)


@torch.no_grad()
def dense_fisher(policy: MlpPolicy, data: dict[str, Any]) -> Tensor:
    """F ``[P, P]`` in float64, from per-sample Jacobians of the network's outputs."""
    body = {
        name: p.detach().double()
        for name, p in policy.named_parameters()
        if name.startswith("body.")
    }
    stripped = {name.removeprefix("body."): p for name, p in body.items()}

    def outputs_of(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(policy.body, parameters, (row.unsqueeze(0),)).squeeze(0)

    obs = data["obs"].double()
    weight = shares(data)
    counted = weight > 0
    obs, weight = obs[counted], weight[counted]
    mask = None if "action_mask" not in data else data["action_mask"][counted]
    jacobians = vmap(jacrev(outputs_of), in_dims=(None, 0))(stripped, obs)
    J = torch.cat([jacobians[name].flatten(2) for name in stripped], dim=2)  # [N, K, P_body]
    outputs = vmap(outputs_of, in_dims=(None, 0))(stripped, obs)
    M = head_fisher(policy, outputs, mask)
    F = torch.einsum("n,nkp,nkl,nlq->pq", weight, J, M, J)
    if policy.log_std is None:
        return F
    return torch.block_diag(2 * torch.eye(len(policy.log_std), dtype=torch.float64), F)


def loss_and_kl(
    policy: nn.Module,
    data: dict[str, Any],
    old: Distribution,
    direction: str = "old_new",
) -> tuple[Tensor, Tensor]:
    """Loss and mean KL at the policy's present parameters, from the definition, differentiable."""
    extra = {} if "action_mask" not in data else {"action_mask": data["action_mask"]}
    new = in_double(policy(data["obs"], **extra))
    w = shares(data)
    ratio = torch.exp(new.log_prob(data["actions"]) - data["old_log_prob"].double())
    kl = kl_divergence(old, new) if direction == "old_new" else kl_divergence(new, old)
    return -(w * ratio * data["advantages"].double()).sum(), (w * kl).sum()


def old_distribution(policy: nn.Module, data: dict[str, Any]) -> Distribution:
    extra = {} if "action_mask" not in data else {"action_mask": data["action_mask"]}
    with torch.no_grad():
        return in_double(policy(data["obs"], **extra))


def relative(found: Tensor, exact: Tensor) -> float:
    """How far apart they are in the 2-norm, as a share of the exact one."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def bits(module: nn.Module) -> list[Tensor]:
    """Copies of every parameter and buffer, to be compared bit for bit."""
    return [t.detach().clone() for t in (*module.parameters(), *module.buffers())]


def same_bits(module: nn.Module, before: list[Tensor]) -> bool:
    now = [t.detach() for t in (*module.parameters(), *module.buffers())]
    return all(_raw(a) == _raw(b) for a, b in zip(now, before, strict=True))


def _raw(t: Tensor) -> bytes:
    return t.contiguous().numpy().tobytes()
