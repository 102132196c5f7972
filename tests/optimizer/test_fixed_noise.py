"""noise="fixed": one dropout mask, and whatever else torch's generator draws, for a whole step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, kl_divergence

from trpo_fast import TRPOOptimizer
from trpo_fast.backends.generic import modules

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
ROWS, WIDTH, HIDDEN, ACTIONS = 64, 6, 12, 3


class Dropped(nn.Module):
    """Batch normalisation and dropout; keeps the masks that it drew, or takes given ones."""

    def __init__(self, *, convolution: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        first = nn.Linear(WIDTH, HIDDEN)
        self.first: nn.Module = (
            nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 2, 1), nn.Flatten())
            if convolution
            else first
        )
        self.drop, self.last = nn.Dropout(0.4), nn.Linear(HIDDEN, ACTIONS)
        self.masks: list[Tensor] = []
        self.given: Tensor | None = None

    def forward(self, obs: Tensor) -> Distribution:
        hidden = torch.tanh(self.first(self.norm(obs)))
        if self.given is not None:
            return Categorical(logits=self.last(hidden * self.given))
        mask = self.drop(torch.ones_like(hidden, requires_grad=False))
        self.masks.append(mask.detach().clone())
        return Categorical(logits=self.last(hidden * mask))


def made(**keywords: Any) -> tuple[Dropped, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = Dropped(**keywords).double()
    module(torch.randn(ROWS, WIDTH, dtype=torch.float64))
    module.masks.clear()
    data = {
        "obs": torch.randn(ROWS, WIDTH, dtype=torch.float64),
        "actions": torch.randint(0, ACTIONS, (ROWS,)),
        "advantages": torch.randn(ROWS, dtype=torch.float64),
    }
    return module, data


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def step(module: nn.Module, data: dict[str, Tensor], **options: Any) -> Any:
    optimizer = TRPOOptimizer(module, **{"noise": "fixed", **options})
    loss = optimizer.step(**data)
    return optimizer, loss


@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "convolution"])
def test_the_step_is_that_of_the_policy_with_the_mask_written_into_it(convolution: bool) -> None:
    module, data = made(convolution=convolution)
    twin = copy.deepcopy(module)
    start = copy.deepcopy(module)
    optimizer, loss = step(module, data)
    assert optimizer.last_result.accepted
    # The ratio is 1 at the start.
    assert float(loss) == pytest.approx(-float(data["advantages"].mean()), abs=1e-12)
    twin.given = module.masks[0]
    plain, _ = step(twin, data, noise="eval")
    assert torch.allclose(flat(module), flat(twin), rtol=1e-9, atol=1e-12)
    assert optimizer.last_result.kl == pytest.approx(plain.last_result.kl, rel=1e-9)
    start.given = module.given = module.masks[0]
    with torch.no_grad():
        old, new = start.eval()(data["obs"]), module.eval()(data["obs"])
        found = float(kl_divergence(old, new).mean())
    assert 0 < found <= 0.01
    assert found == pytest.approx(optimizer.last_result.kl, rel=1e-9)


def test_every_call_of_a_step_has_one_mask_and_the_next_step_another() -> None:
    module, data = made()
    optimizer, _ = step(module, data)
    first = list(module.masks)
    assert len(first) >= 3
    assert all(torch.equal(mask, first[0]) for mask in first)
    assert 0.2 < float((first[0] == 0).double().mean()) < 0.6
    torch.rand(1)  # as a rollout would
    module.masks.clear()
    optimizer.step(**data)
    assert all(torch.equal(mask, module.masks[0]) for mask in module.masks)
    assert not torch.equal(module.masks[0], first[0])


def test_generator_modes_and_buffers_are_put_back() -> None:
    module, data = made()
    module.last.eval()
    modes = [child.training for child in module.modules()]
    buffers = [b.clone() for b in module.buffers()]
    state = torch.get_rng_state()
    step(module, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert [child.training for child in module.modules()] == modes
    assert all(a.equal(b) for a, b in zip(module.buffers(), buffers, strict=True))


def test_it_is_reproduced_from_the_generators_state() -> None:
    ends = []
    for seed in (3, 3, 4):
        module, data = made()
        torch.manual_seed(seed)
        step(module, data)
        ends.append(flat(module))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_chunks_have_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "CHUNK_ROWS", 16)
    module, data = made()
    optimizer, _ = step(module, data)
    assert optimizer.last_result.accepted
    kinds = {tuple(mask.flatten().tolist()) for mask in module.masks}
    assert len(kinds) == ROWS // 16


def test_the_closure_form_with_parameters_alone() -> None:
    module, data = made()
    module.norm.eval()
    torch.manual_seed(5)
    module.masks.clear()
    old: list[Tensor] = []

    def closure() -> tuple[Tensor, Distribution]:
        distribution = module(data["obs"])
        log_prob = distribution.log_prob(data["actions"])
        if not old:
            old.append(log_prob.detach())
        return -(torch.exp(log_prob - old[0]) * data["advantages"]).mean(), distribution

    state = torch.get_rng_state()
    optimizer = TRPOOptimizer(module.parameters(), noise="fixed")
    optimizer.step(closure)
    assert optimizer.last_result is not None
    assert optimizer.last_result.accepted
    assert len(module.masks) >= 2
    assert all(torch.equal(mask, module.masks[0]) for mask in module.masks)
    assert torch.equal(torch.get_rng_state(), state)


class Noisy(nn.Module):
    """Noise that eval mode does not switch off."""

    def __init__(self, *, numpy: bool) -> None:
        super().__init__()
        self.linear, self.numpy = nn.Linear(WIDTH, ACTIONS), numpy

    def forward(self, obs: Tensor) -> Distribution:
        if self.numpy:
            noise = torch.from_numpy(np.random.normal(size=tuple(obs.shape)))  # noqa: NPY002
        else:
            noise = torch.randn_like(obs)
        return Categorical(logits=self.linear(obs + noise))


def test_noise_drawn_in_forward_is_kept_the_same() -> None:
    _, data = made()
    module = Noisy(numpy=False).double()
    before = flat(module)
    with pytest.raises(ValueError, match=r"KL\(theta, theta\).*noise='fixed'"):
        step(module, data, noise="eval")
    assert torch.equal(flat(module), before)
    optimizer, _ = step(module, data)
    assert optimizer.last_result.accepted


def test_noise_of_another_generator_is_an_error_all_the_same() -> None:
    _, data = made()
    module = Noisy(numpy=True).double()
    before = flat(module)
    with pytest.raises(ValueError, match=r"KL\(theta, theta\) = .*must be 0"):
        step(module, data)
    assert torch.equal(flat(module), before)


def test_a_perceptron_with_dropout_takes_the_generic_path_for_it() -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(WIDTH, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, ACTIONS)
            )

        def forward(self, obs: Tensor) -> Distribution:
            return Categorical(logits=self.body(obs))

    _, data = made()
    module = Perceptron().double()
    optimizer, _ = step(module, data)
    assert optimizer.path == "generic"
    assert "noise='fixed'" in optimizer.path_reason
    assert module.training
    with pytest.raises(ValueError, match="noise='fixed'"):
        TRPOOptimizer(module, noise="fixed", backend="reference")
    optimizer, _ = step(module.eval(), data)
    assert optimizer.path == "fused"


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="noise must be one of eval, fixed"):
        TRPOOptimizer(Noisy(numpy=False), noise="frozen")
