"""The limit of a step is each environment's own, whatever share of them a worker has."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from slow_environment import FOREVER
from toy_environments import Scripted

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed
from trpo_fast.environments.workers import Workers

LIMIT = 2.0
SLOW = 0.4 * LIMIT  # so that four of a share take longer than the limit


class Slow(Scripted):
    """Takes a while for its second step; environment `hung` of seed 1 does not come back."""

    def __init__(self, hung: int | None) -> None:
        super().__init__(((9, "terminated"),))
        self.hung = hung

    def step(self, action: Any) -> Any:
        if self.time == 1:
            hangs = self.hung is not None and self.np_random_seed == episode_seed(1, self.hung, 0)
            time.sleep(FOREVER if hangs else SLOW)
        return super().step(action)


def slow_share(hung: int | None) -> Workers:
    """Four environments in one worker."""
    env = make_vector_env(
        lambda: Slow(hung),
        num_envs=4,
        seed=1,
        vectorization="workers",
        num_workers=1,
        step_timeout=LIMIT,
    )
    assert isinstance(env, Workers)
    return env


def two_steps(env: Workers) -> None:
    out = np.empty((4, 3), np.float32)
    env.reset(out)
    for _ in range(2):
        env.step(np.zeros(4, np.int64), out)


def test_slow_environments_of_a_share_are_not_taken_to_hang_together() -> None:
    env = slow_share(None)
    began = time.monotonic()
    two_steps(env)
    assert time.monotonic() - began > LIMIT
    env.close()


@pytest.mark.reliability("hung_environment")
@pytest.mark.parametrize("hung", [0, 3])
def test_the_one_of_a_share_that_hangs_is_named(hung: int) -> None:
    """The first one, and one after slow ones that together took longer than the limit."""
    env = slow_share(hung)
    pattern = rf"environment {hung} of .* did not answer within 2 s in step\(\) \(step 2, action 0"
    with pytest.raises(EnvironmentFault, match=pattern) as caught:
        two_steps(env)
    assert (caught.value.env_index, caught.value.step) == (hung, 2)
