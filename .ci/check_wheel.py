"""Use an installed wheel as its user would, outside the checkout: train, save, load, predict."""

import argparse
import tempfile
from pathlib import Path

import trpo_fast
from trpo_fast import TRPO, _native


def check_cuda() -> None:
    """The CUDA kernels are in the wheel, and give facts with a driver and without."""
    core, error = _native.cuda()
    assert core is not None, error
    facts = core.facts()
    assert facts["runtime"] >= 12000
    assert facts["devices"] > 0 or facts["error"]
    print(f"the wheel has CUDA kernels for {core.architectures}: {facts}")


def main(*, native: bool, cuda: bool) -> None:
    """Fail loudly when the package is not the installed one, or does not train."""
    package = Path(trpo_fast.__file__).parent
    assert "site-packages" in package.parts, f"imported from {package}, not from the wheel"
    assert (_native.core is not None) == native, _native.load_error
    assert (package / "py.typed").is_file()
    if cuda:
        check_cuda()

    agent = TRPO("CartPole-v1", num_envs=2, rollout_steps=128, seed=0)
    agent.learn(1024, progress_bar=False)
    mean, _ = agent.evaluate(3)
    with tempfile.TemporaryDirectory() as folder:
        agent.save(f"{folder}/agent")
        again = TRPO.load(f"{folder}/agent", env="CartPole-v1")
    assert again.num_timesteps == agent.num_timesteps
    print(f"the wheel trains: CartPole-v1, {agent.num_timesteps} steps, mean return {mean:.1f}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cuda", action="store_true", help="the wheel must have CUDA kernels")
    arguments.add_argument(
        "--without-native",
        action="store_true",
        help="the wheel must have no native code",
    )
    options = arguments.parse_args()
    main(native=not options.without_native, cuda=options.cuda)
