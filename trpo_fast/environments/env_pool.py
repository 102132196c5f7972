"""EnvPool: environments stepped by C++ threads, behind gymnasium's vector interface.

EnvPool has its own implementations of many of gymnasium's environments (classic control, MuJoCo,
Box2D, Atari, ...) under the same ids. Its convention after an episode's end is NEXT_STEP: the step
that ends it returns the final observation, the next one ignores the action and resets. Seeds are
fixed when the pool is made, so its episodes cannot be replayed: a resumed run makes another pool.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.base.threads import usable_cores
from trpo_fast.environments.action_masks import MASK_KEY

# EnvPool's seeds are C ints, and environment i is seeded with seed + i.
MAX_SEED = 2**30
# What EnvPool calls the parts of a state that are used here.
_STATE = ("obs", "reward", "done", "trunc")


def is_installed() -> bool:
    """Whether EnvPool can be imported."""
    return find_spec("envpool") is not None


def only_here(env: Any, vectorization: Any) -> bool:
    """Whether a run stepped EnvPool's environments under an id that gymnasium does not know."""
    return vectorization == "envpool" and isinstance(env, str) and env not in gym.registry


class PooledEnvironments(VectorEnv[Any, Any, Any]):
    """A pool of one of EnvPool's environments, all of them stepped at each call.

    Args:
        name: an id that ``envpool.list_all_envs()`` has.
        num_envs: B.
        seed: of the pool; environment i is seeded with ``seed % 2**30 + i``. A reset with another
            seed makes another pool.
        env_kwargs: further arguments of ``envpool.make``; ``num_threads`` is the number of usable
            CPUs unless it is among them.

    Raises:
        EnvironmentSetupError: there is no such environment, or EnvPool refuses the arguments.
    """

    def __init__(self, name: str, num_envs: int, seed: int, env_kwargs: Mapping[str, Any]) -> None:
        self._remake = partial(_make, name, num_envs, env_kwargs)
        self._seed = seed
        pool = self._remake(seed)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs = num_envs
        # EnvPool's spaces are those of one environment, under the names of a batch's.
        self.single_observation_space: gym.Space[Any] = pool.observation_space
        self.single_action_space: gym.Space[Any] = pool.action_space
        batch = gym.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self._pool = pool
        self._direct = DirectStep.of(pool, self.observation_space, self.action_space)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode everywhere, in another pool where the seed is not this one's."""
        del options
        if seed is not None and seed != self._seed:
            assert isinstance(seed, int)  # noqa: S101
            self._pool.close()
            self._pool, self._seed = self._remake(seed), seed
            self._direct = DirectStep.of(self._pool, self.observation_space, self.action_space)
        observations, info = self._pool.reset()
        return observations, _masks(info)

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Any, npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Step every environment; one whose episode ended at the step before resets instead."""
        if self._direct is not None:
            return (*self._direct(actions), {})
        observations, rewards, terminated, truncated, info = self._pool.step(actions)
        return observations, rewards, terminated, truncated, _masks(info)

    def close_extras(self, **kwargs: Any) -> None:
        """End the pool's threads."""
        self._pool.close(**kwargs)


class PoolOfOne(gym.Env[Any, Any]):
    """One of EnvPool's environments as an Env, for the episodes of an evaluation.

    Each seed is another pool, so a reset costs making one.

    Args:
        name: an id that ``envpool.list_all_envs()`` has.
        env_kwargs: further arguments of ``envpool.make``.
    """

    def __init__(self, name: str, env_kwargs: Mapping[str, Any]) -> None:
        self._pool = PooledEnvironments(name, 1, 0, env_kwargs)
        self.observation_space = self._pool.single_observation_space
        self.action_space = self._pool.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the episode of a seed."""
        del options
        batch, info = self._pool.reset(seed=seed)
        return self._first(batch), _first_mask(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the one environment."""
        batch, rewards, terminated, truncated, info = self._pool.step(np.asarray(action)[None])
        ends = bool(terminated[0]), bool(truncated[0])
        return self._first(batch), float(rewards[0]), *ends, _first_mask(info)

    def _first(self, batch: Any) -> Any:
        """The only observation of a batch; EnvPool writes the next one to other memory."""
        return next(iter(iterate(self._pool.observation_space, batch)))

    def close(self) -> None:
        """End the pool's threads."""
        self._pool.close()


def _first_mask(info: Mapping[str, Any]) -> dict[str, Any]:
    return {MASK_KEY: info[MASK_KEY][0]} if MASK_KEY in info else {}


class DirectStep:
    """A pool's step without EnvPool's own wrapper, whose dictionaries nobody reads here.

    Building them takes longer than the policy's forward pass. ``of`` gives None for a pool whose
    arrays are not those of a plain environment: several players, nested observations, masks.
    """

    @classmethod
    def of(cls, pool: Any, observations: gym.Space[Any], actions: gym.Space[Any]) -> Self | None:
        """The direct step of a pool with these batched spaces, or None."""
        keys = list(getattr(pool, "_state_keys", ()))
        plain = (
            list(getattr(pool, "_action_keys", ())) == ["env_id", "players.env_id", "action"]
            and all(key in keys for key in _STATE)
            and f"info:{MASK_KEY}" not in keys
            and pool.config.get("max_num_players", 1) == 1
            and isinstance(observations, gym.spaces.Box)
            and actions.shape is not None
        )
        return cls(pool, keys, actions) if plain else None

    def __init__(self, pool: Any, keys: list[str], actions: gym.Space[Any]) -> None:
        self._send, self._recv = pool._send, pool._recv
        self._places = [keys.index(key) for key in _STATE]
        self._dtype = pool._spec._action_spec[-1][0]
        self._shape = actions.shape
        self._ids = pool.all_env_ids

    def __call__(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Any, npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Observations, rewards, terminated and truncated; ValueError for actions of another shape.

        EnvPool reads the actions' memory while it steps: it is not to be written to.
        """
        if actions.shape != self._shape:
            raise ValueError(f"actions must have shape {self._shape}, got {actions.shape}")
        self._send([self._ids, self._ids, actions.astype(self._dtype, order="C", copy=False)])
        state = self._recv()
        observations, rewards, done, truncated = (state[place] for place in self._places)
        return observations, rewards, done & ~truncated, truncated


def _make(name: str, num_envs: int, env_kwargs: Mapping[str, Any], seed: int) -> Any:
    import envpool

    arguments = {
        "num_envs": num_envs,
        "seed": seed % MAX_SEED,
        "num_threads": min(num_envs, usable_cores()),
        **env_kwargs,
    }
    known = envpool.list_all_envs()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise EnvironmentSetupError(
            f"EnvPool has no environment {name!r}.{hint} vectorization='sync' takes any of "
            "gymnasium's."
        )
    # It batches observations in order only when all of them are waited for.
    if arguments.get("batch_size", num_envs) != num_envs:
        raise EnvironmentSetupError(
            f"env_kwargs batch_size={arguments['batch_size']} must be num_envs ({num_envs}) or "
            "left out: a policy here acts in all environments at once."
        )
    try:
        pool = envpool.make(name, env_type="gymnasium", **arguments)
    except Exception as error:
        raise EnvironmentSetupError(
            f"EnvPool could not make {name} with {arguments}: {type(error).__name__}: {error}"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gymnasium, about float64 bounds of float32 spaces
        _ = pool.observation_space, pool.action_space  # made when first asked for, then kept
    return pool


def _masks(info: Mapping[str, Any]) -> dict[str, Any]:
    """Action masks alone: nothing else of the infos is used."""
    if MASK_KEY not in info:
        return {}
    masks = np.asarray(info[MASK_KEY], bool)
    return {MASK_KEY: masks, f"_{MASK_KEY}": np.ones(len(masks), bool)}
