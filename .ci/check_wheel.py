"""Use an installed wheel as its user would, outside the checkout: train, save, load, predict."""

import tempfile
from pathlib import Path

import trpo_fast
from trpo_fast import TRPO, _native


def main() -> None:
    """Fail loudly when the package is not the installed one, or does not train."""
    package = Path(trpo_fast.__file__).parent
    assert "site-packages" in package.parts, f"imported from {package}, not from the wheel"
    assert _native.core is not None, _native.load_error
    assert (package / "py.typed").is_file()

    agent = TRPO("CartPole-v1", num_envs=2, rollout_steps=128, seed=0)
    agent.learn(1024, progress_bar=False)
    mean, _ = agent.evaluate(3)
    with tempfile.TemporaryDirectory() as folder:
        agent.save(f"{folder}/agent")
        again = TRPO.load(f"{folder}/agent", env="CartPole-v1")
    assert again.num_timesteps == agent.num_timesteps
    print(f"the wheel trains: CartPole-v1, {agent.num_timesteps} steps, mean return {mean:.1f}")


if __name__ == "__main__":
    main()
