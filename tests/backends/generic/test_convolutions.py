"""Convolutions that are linearised: torch's values, dense Fisher matrices, and no work in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from generic_cases import dense_fisher, linear_of
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from trpo_fast import TRPOOptimizer
from trpo_fast.backends.generic.convolutions import Convolutions, _Convolution

pytestmark = [
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    # Torch, of itself, at its first dual number.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
]
ROWS = 4


class Policy(nn.Module):
    """Some layer between two others, so that the cotangent of its input is wanted."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
        self.first, self.layer = kind(shape[0], shape[0], 1), layer
        width = layer(torch.zeros(1, *shape)).numel()
        self.out = nn.Linear(width, 3)

    def forward(self, obs: Tensor) -> Distribution:
        return Categorical(logits=self.out(self.layer(self.first(obs).tanh()).tanh().flatten(1)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(2, 3, 3), (2, 6)),
    "1d, padded to the same size": (lambda: nn.Conv1d(2, 3, 3, padding="same"), (2, 6)),
    "1d, padded unevenly": (lambda: nn.Conv1d(2, 3, 2, padding="same"), (2, 5)),
    "1d, not padded": (lambda: nn.Conv1d(2, 3, 2, padding="valid"), (2, 6)),
    "1d, padded by reflection": (
        lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"),
        (2, 6),
    ),
    "2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 5, 4)),
    "2d, without a bias": (lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 4, 4)),
    "2d, groups": (lambda: nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    "2d, depthwise": (lambda: nn.Conv2d(2, 4, 2, groups=2), (2, 4, 4)),
    "2d, dilated": (lambda: nn.Conv2d(2, 3, 2, dilation=2), (2, 5, 4)),
    "3d": (lambda: nn.Conv3d(1, 2, 2, stride=2), (1, 4, 4, 4)),
    "1d, transposed": (lambda: nn.ConvTranspose1d(2, 3, 3), (2, 4)),
    "2d, transposed": (
        lambda: nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1, groups=2, dilation=2),
        (4, 3, 3),
    ),
    "3d, transposed": (lambda: nn.ConvTranspose3d(1, 2, 2, bias=False), (1, 2, 2, 2)),
}
# Torch works out by itself what uneven padding means.
NATIVE = ("1d, padded unevenly",)


def policy_of(name: str) -> tuple[Policy, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    obs = torch.randn(ROWS, *shape, dtype=torch.float64)
    return Policy(make(), shape).double(), obs


@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias", "layer", "first"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_convolution_equals_the_dense_fisher_matrix(name: str, frozen: str) -> None:
    policy, obs = policy_of(name)
    if frozen in ("layer", "first"):
        policy.get_submodule(frozen).requires_grad_(False)
    elif getattr(policy.layer, frozen, None) is not None:
        getattr(policy.layer, frozen).requires_grad_(False)
    dense = dense_fisher(policy, obs)
    linear = linear_of(policy, obs, Convolutions())
    for _ in range(2):
        v = torch.randn(len(dense), dtype=torch.float64)
        assert torch.allclose(linear.product(v), dense @ v, rtol=1e-8, atol=1e-12)
    assert float(dense.abs().max()) > 1e-6


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_derivatives_of_every_order_are_torchs_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, obs = policy_of(name)
    calls: list[Any] = []
    forward = _Convolution.forward
    monkeypatch.setattr(
        _Convolution, "forward", lambda *given: (calls.append(given), forward(*given))[1]
    )
    with Convolutions():
        watched = policy.layer(obs.requires_grad_())
    assert len(calls) == (0 if name in NATIVE else 1)
    plain = policy.layer(obs)
    assert torch.equal(watched, plain)
    leaves = [obs, *policy.layer.parameters()]
    firsts, seconds = [], []
    for output in (watched, plain):
        first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
        firsts.append(first)
        total = sum((slope.square().sum() for slope in first), torch.zeros(()))
        seconds.append(torch.autograd.grad(total, leaves))
    for ours, theirs in (firsts, seconds):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_product_convolves_no_more_than_it_must() -> None:
    policy, obs = policy_of("2d")
    linear = linear_of(policy, obs, Convolutions())
    v = torch.randn(sum(p.numel() for p in policy.parameters()), dtype=torch.float64)
    counts: Counter[str] = Counter()
    masks = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            name = func.overloadpacket.__name__
            counts[name] += 1
            if name == "convolution_backward":
                masks.append(args[-1])
            return func(*args, **(kwargs or {}))

    with Counting():
        linear.product(v)
    # dy = conv(x, dW) of the first layer; conv(x, dW) + conv(dx, W) of the second
    assert counts["convolution"] == 3
    assert masks == [[True, True, True], [False, True, True]]


def test_checkpointed_convolutions() -> None:
    class Saving(Policy):
        def forward(self, obs: Tensor) -> Distribution:
            hidden = checkpoint(self.layer, self.first(obs).tanh(), use_reentrant=False)
            return Categorical(logits=self.out(hidden.flatten(1)))

    torch.manual_seed(0)
    policy = Saving(nn.Conv2d(2, 3, 2), (2, 4, 4)).double()
    obs = torch.randn(ROWS, 2, 4, 4, dtype=torch.float64)
    dense, linear = dense_fisher(policy, obs), linear_of(policy, obs, Convolutions())
    v = torch.randn(len(dense), dtype=torch.float64)
    assert torch.allclose(linear.product(v), dense @ v, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", ["slope", "vmap", "jvp", "forward mode", "autocast", "one row"])
def test_a_forward_that_asks_more_of_a_convolution(form: str) -> None:
    class Asking(Policy):
        def hidden(self, obs: Tensor) -> Tensor:
            x = self.first(obs)
            if form == "slope":  # an energy's slope is the feature: its second derivatives count
                energy = self.layer(x).sin().sum()
                return torch.autograd.grad(energy, x, create_graph=True)[0]
            if form == "vmap":
                return torch.func.vmap(self.layer)(x.unsqueeze(1)).squeeze(1)
            if form == "jvp":
                return torch.func.jvp(self.layer, (x,), (x.sin(),))[1]
            if form == "forward mode":
                with torch.autograd.forward_ad.dual_level() as level:
                    dual = torch.autograd.forward_ad.make_dual(x, x.sin(), level=level)
                    return torch.autograd.forward_ad.unpack_dual(self.layer(dual)).tangent
            if form == "one row":
                return torch.stack([self.layer(row) for row in x])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x).to(x.dtype)

        def forward(self, obs: Tensor) -> Distribution:
            return Categorical(logits=self.hidden(obs).tanh().flatten(1))

    torch.manual_seed(0)
    policy, obs = Asking(nn.Conv1d(2, 2, 3), (2, 5)), torch.randn(ROWS, 2, 5)
    if form != "autocast":
        policy, obs = policy.double(), obs.double()
    for p in policy.out.parameters():
        p.requires_grad_(False)
    plain, linear = linear_of(policy, obs), linear_of(policy, obs, Convolutions())
    v = torch.randn(sum(p.numel() for p in policy.parameters() if p.requires_grad)).to(obs)
    assert torch.allclose(linear.product(v), plain.product(v), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["module", "closure"])
def test_a_step_equals_that_of_torchs_own_convolutions(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved() -> Tensor:
        torch.manual_seed(0)
        policy = Policy(nn.Conv2d(2, 3, 2), (2, 4, 4)).double()
        obs = torch.randn(64, 2, 4, 4, dtype=torch.float64)
        actions, advantages = torch.randint(0, 3, (64,)), torch.randn(64).double()
        before = nn.utils.parameters_to_vector(policy.parameters()).detach()
        if form == "module":
            optimizer = TRPOOptimizer(policy)
            optimizer.step(obs=obs, actions=actions, advantages=advantages)
        else:
            old = policy(obs).log_prob(actions).detach()

            def closure() -> tuple[Tensor, Distribution]:
                distribution = policy(obs)
                ratio = (distribution.log_prob(actions) - old).exp()
                return -(ratio * advantages).mean(), distribution

            optimizer = TRPOOptimizer(policy.parameters())
            optimizer.step(closure)
        assert optimizer.last_result is not None
        assert optimizer.last_result.accepted
        return nn.utils.parameters_to_vector(policy.parameters()).detach() - before

    ours = moved()
    monkeypatch.setattr("trpo_fast.backends.generic.convolutions._CALLS", {})
    assert torch.allclose(ours, moved(), rtol=1e-8, atol=1e-12)
