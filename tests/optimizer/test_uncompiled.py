"""torch.compile around an optimizer, and processes in which nobody compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_cases import GAUSSIAN, closure_of, flat, result_of
from update_cases import Wrapped, make_data, make_policy

from trpo_fast import TRPOOptimizer

UNCOMPILED = """
import sys
import torch
from trpo_fast import TRPO, TRPOOptimizer

class Policy(torch.nn.Linear):
    def forward(self, obs):
        return torch.distributions.Categorical(logits=super().forward(obs))

optimizer = TRPOOptimizer(Policy(3, 4))
optimizer.step(obs=torch.randn(9, 3), actions=torch.zeros(9).long(), advantages=torch.randn(9))
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
options = {"num_envs": 2, "rollout_steps": 16, "seed": 0, "save_every": 1}
with TRPO("CartPole-v1", run_dir="run", **options) as agent:
    agent.learn(64, progress_bar=False)
TRPO.load("run/checkpoints/step-000000000064.safetensors").close()
print(*sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_a_training_does_not_import_torchs_compiler(run_python: Any) -> None:
    done = run_python(UNCOMPILED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"


@pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
@pytest.mark.parametrize("form", ["fused", "generic", "closure"])
def test_a_step_in_a_compiled_function_is_the_step(form: str) -> None:
    policies = [make_policy(GAUSSIAN) for _ in range(2)]
    optimizers = [TRPOOptimizer(Wrapped(p) if form == "generic" else p) for p in policies]
    if form == "generic":
        for optimizer in optimizers:
            assert optimizer.module is not None
            optimizer.module.register_forward_hook(lambda *_: None)
    data = make_data(policies[0], GAUSSIAN)

    def training(optimizer: TRPOOptimizer, policy: Any, scale: torch.Tensor) -> torch.Tensor:
        now = {**data, "advantages": data["advantages"] * scale.tanh()}
        if form == "closure":
            return optimizer.step(closure_of(policy, now)) + 1
        return optimizer.step(**now) + 1

    scale = torch.tensor(2.0, dtype=torch.float64)
    compiled = torch.compile(training, backend="aot_eager")
    for _ in range(2):
        losses = [
            run(optimizer, policy, scale)
            for run, optimizer, policy in zip(
                (training, compiled), optimizers, policies, strict=True
            )
        ]
        assert torch.equal(*losses)
        assert result_of(optimizers[1]) == result_of(optimizers[0])
        assert optimizers[1].path == ("fused" if form == "fused" else "generic")
        assert torch.equal(flat(policies[0]), flat(policies[1]))


def test_a_compiled_function_may_ask_for_the_state() -> None:
    optimizer = TRPOOptimizer(make_policy(GAUSSIAN))

    @torch.compile(backend="aot_eager")
    def states(x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        y = x.sin()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        return optimizer.state_dict(), y.cos()

    state, _ = states(torch.ones(2))
    assert state == optimizer.state_dict()
