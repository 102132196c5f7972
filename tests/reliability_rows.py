"""What goes wrong for people who use the package, and what it does then: docs/reliability.md.

A test that holds a row carries its key: ``@pytest.mark.reliability("clock")``.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """The trouble, and what happens then."""

    trouble: str
    answer: str


ROWS = {
    "Data changed on the way in": {
        "outside_its_space": Row(
            "An environment returns what its space cannot hold: fractions in "
            "`Box(..., np.int64)`, 256 in uint8, 2 in MultiBinary",
            "It is refused, with environment, entry and value named: at reset, amid an episode and "
            "in its last observation; in training, evaluation and `predict`. Whole numbers of "
            "another type are as good",
        ),
        "clock": Row(
            "Observations far from 0 with a small spread: a clock at 1.7e9 seconds, of float64 or "
            "int64",
            "Their mean is taken off before they become float32: they are learnt from as small "
            "numbers are",
        ),
        "large_rewards": Row(
            "Rewards of 1e9 that differ by 10",
            "The difference is learnt from: rewards keep their digits through advantage estimation",
        ),
        "float64_bounds": Row(
            "A float64 Box with bounds that float32 does not hold, as 0.1",
            "No action leaves it: in training, evaluation and `predict`, by a policy of ours or of "
            "the user's own",
        ),
    },
    "What comes back is what was saved": {
        "env_kwargs": Row(
            "Values in `env_kwargs` that JSON does not have: tuples, sets, NumPy's numbers and "
            "arrays, paths, bytes, NaN",
            "`load`, `eval` and `--resume` make the environment with the same values, types and "
            "bits",
        ),
        "env_kwargs_refused": Row(
            "A value in `env_kwargs` that no file can hold, as an object of the user's own",
            "It is refused when the run begins, with its place and the way out",
        ),
        "saved_dtype": Row(
            "torch's default dtype is another one at loading than at saving",
            "The agent keeps its own and goes on bit for bit; a module of the user's own in "
            "another dtype is refused",
        ),
        "no_second_environment": Row(
            "`eval_every` with an environment of which no second one can be made",
            "It is refused before the first step, with the ways out",
        ),
        "one_instance": Row(
            "A simulator of which one instance may exist, to be evaluated",
            "`eval_envs=0` plays the evaluation in the training's own environments; the running "
            "episodes are entered again, to the bit, or begin anew where they cannot be",
        ),
        "envpool_ids": Row(
            "An id that only EnvPool has, with `eval_every` or in `trpo-fast eval`",
            "EnvPool plays the evaluation",
        ),
        "eval_envs": Row(
            "An environment of which only few fit beside the training's",
            "`eval_envs` bounds those that an evaluation makes, and the scores stay the same",
        ),
        "relative_run_dir": Row(
            "The working directory changes in a run whose `run_dir` is relative",
            "The run stays where it was named",
        ),
        "tilde": Row(
            "`~` in a path",
            "It is the home directory: in `run_dir`, `save`, `load`, `eval` and `plot`",
        ),
        "predict_only": Row(
            "An agent is to predict where its environment is not installed",
            "`TRPO.load(path, predict_only=True)` needs none and gives the same actions; what it "
            "cannot do without environments, it says",
        ),
        "pickled_agent": Row(
            "An agent is pickled or copied", "It is refused, with `save` and `load` as the way"
        ),
    },
    "Evaluation is guarded as training is": {
        "endless_episodes": Row(
            "Episodes that never end",
            "They are stopped after `eval_max_steps`, counted and warned of; lines tell how far "
            "the evaluation is, and Ctrl-C ends it and closes its environments",
        ),
        "evaluation_nan": Row(
            "A reward or an observation in an evaluation is NaN, infinite or beyond float32",
            "An `EnvironmentFault` with episode and step, or the episode is left out, as "
            "`on_fault` says",
        ),
        "best_evaluation": Row(
            "A run whose best evaluation is NaN, as an older version left it",
            "The next evaluation takes its place",
        ),
        "evaluation_raises": Row(
            "An environment raises in an evaluation",
            "An `EnvironmentFault` with episode and step and the environment's own traceback; on "
            "the command line that alone, and exit code 1",
        ),
        "mask_rule": Row(
            "`info['action_mask']` beside actions that take none, at some steps only, or None",
            "One rule in training, evaluation and `predict`",
        ),
        "render": Row(
            "`render()` raises, gives no array or none of a picture's shape, or is for a screen "
            "alone",
            "An `EnvironmentSetupError` says which; an environment that renders already is "
            "recorded, an episode a file",
        ),
        "normalising_wrapper": Row(
            "A normalising wrapper within the environment begins anew in an evaluation",
            "A warning names it and the statistics it holds",
        ),
    },
    "Words": {
        "old_or_foreign_id": Row(
            "An id of an older gymnasium or of another package: `HalfCheetah-v2`, "
            "`ALE/Breakout-v5`",
            "The error names the version of now, or the package that registers it",
        ),
        "module_beside_the_user": Row(
            "`trpo-fast train mymodule:Env-v0` in that module's directory",
            "The module is found, as by `python -m trpo_fast`",
        ),
        "blame": Row(
            "One of several environments gives an observation of another shape or kind",
            "That one is blamed, and no other",
        ),
        "sb3_callbacks": Row(
            "Callbacks written for Stable-Baselines3: `EvalCallback`, `StopTrainingOn...`, "
            "`ProgressBarCallback`, lists, `self.logger`",
            "They run as on its own agents, step by step after each update; what the agent cannot "
            "answer, it says in words",
        ),
        "old_gym": Row(
            "An environment of the interface before gym 0.26",
            "The error names what it returned or did not take, and the interface",
        ),
        "all_of_reset": Row(
            "`predict(env.reset())`, `predict(env.step(action))`",
            "The error says that the first entry is the observation",
        ),
        "option_in_env_kwargs": Row(
            "`num_envs` or `seed` among `env_kwargs`",
            "The error names it as an option of the agent, with the line that says it",
        ),
        "huge_reward": Row("A reward of 1e39", "An `EnvironmentFault` with its value"),
        "backward_in_closure": Row(
            "`loss.backward()` within a closure",
            "The error says to take it out, and no parameter has moved",
        ),
        "learn_after_close": Row(
            "`learn` after `close`", "It goes on where it was, with the bits of no `close`"
        ),
    },
    "Seeds, devices, plots": {
        "c_int_seeds": Row(
            "An environment that keeps its seed in a C int",
            "Episodes are seeded with 31 bits; a run saved with 32 goes on in new episodes, and "
            "says so",
        ),
        "default_device": Row(
            "`torch.set_default_device(...)`, or a device as a context",
            "Agents and optimizers do what they do without, bit for bit",
        ),
        "one_point": Row(
            "A learning curve of one point, or a point without neighbours", "It is drawn as a dot"
        ),
    },
    "The trust region is measured": {
        "stale_closure": Row(
            "A closure, or `forward`, gives a loss or a distribution that was made before the step",
            "It is refused and no parameter has moved; what only looks alike is served",
        ),
        "distant_bounds": Row(
            "A Box that the policy's first actions hardly meet: a bound of 300 without another, or "
            "`Box(300, 500)`, +-7000 with `scale_actions=False`",
            "A warning says what to do when the agent is made",
        ),
    },
    "The recogniser": {
        "rows": Row(
            "A `forward` that is another function of many rows than of few, or of another layout",
            "It is found by comparing the whole batch at each new size, and takes the generic "
            "path: the KL reported is the one measured",
        ),
        "python_state": Row(
            "A `forward` that reads Python state which changes later: attributes, globals, "
            "closures, defaults, torch's modes",
            "What it may read is compared at each step; what cannot be compared is named and takes "
            "the generic path",
        ),
        "membership": Row(
            "A module gains, loses or replaces a trainable parameter after the optimizer was made",
            "The parameter is named on every path, and nothing has moved",
        ),
    },
    "An agent outlives its environments": {
        "closed_agent": Row(
            "`close()`, and then `save()` or `learn()`",
            "Both work; the environments are made anew, and the bits are those of an agent that "
            "was not closed",
        ),
        "killed_process": Row(
            "An environment's process is killed: between two calls of `learn`, or at any moment "
            "of one",
            "It is named with its signal and replaced at the next `learn`, which gives the bits of "
            "a run without a break",
        ),
        "interrupted_learn": Row(
            "Ctrl-C in `learn`, at any moment of it, and `learn` again",
            "The same bits as without it, in the first rollout too; of a vector given whole what "
            "is lost is said",
        ),
        "orphans": Row(
            "Two signals while processes are busy or stopped; the trainer is killed",
            "All end together, and nothing is left of them: no process, no shared memory",
        ),
        "hung_environment": Row(
            "A step or a reset in another process that does not come back",
            "A line says so after half a minute; with `--step-timeout` it is an error that names "
            "the environment",
        ),
        "hung_here": Row(
            "A step or a reset in the trainer's own process that does not come back",
            "A line says so after half a minute, in evaluations too, and names environment and "
            "step; after `--step-timeout` it shows the line of code. The step goes on: nobody can "
            "end it from within",
        ),
        "bad_close": Row(
            "`env.close()` raises, exits or hangs",
            "What is done and saved stays so and is said; a warning, and exit code 0",
        ),
    },
    "Files": {
        "planted_names": Row(
            "Several threads or processes save to one path; a link or a file lies at a name that "
            "is written meanwhile",
            "Each file is whole, under a temporary name that nobody can know beforehand; no link "
            "is followed, nothing of the user's is overwritten or removed",
        ),
        "odd_places": Row(
            "An empty, too long or forbidden path, links in a ring, a FIFO or a directory where a "
            "file belongs",
            "One line that names the path and the reason, and exit code 2; `checkpoints/` and "
            "files behind links resume",
        ),
        "full_disk": Row(
            "The disk is full at a save",
            "Old rolling checkpoints make room one by one; the newest whole one and the best stay",
        ),
        "sizes": Row(
            "A checkpoint whose header or options speak of more than the file has",
            "It is refused before memory is taken",
        ),
        "odd_values": Row(
            "A well-formed checkpoint with a value of a wrong type, or one that cannot be",
            "All such are listed when it is loaded; none is met in `learn`",
        ),
    },
    "Conventions and numbers": {
        "undeclared_autoreset": Row(
            "A vector environment that does not declare its `autoreset_mode`",
            "What it gives at an episode's end tells: `final_obs` means SAME_STEP",
        ),
        "late_mask": Row(
            "A vector environment gives an action mask at a step and gave none at reset",
            "It is refused, for the first action was chosen without one",
        ),
        "no_curvature": Row(
            "Damping 0 with curvature near 0, or a damping beyond the dtype",
            "A status, or an accepted step within the region; never torch's overflow error",
        ),
        "long_native_call": Row(
            "Ctrl-C within one native call over a large batch and a wide network",
            "It is answered within a product, and no parameter has moved",
        ),
        "signal_at_the_start": Row(
            "Ctrl-C or SIGTERM while the program still imports torch",
            "Exit code 130 at once, and no traceback",
        ),
        "signal_at_the_picture": Row(
            "Ctrl-C or SIGTERM while the learning curve is drawn",
            "The picture, the rows and the checkpoint are written, and the exit code is 130; a "
            "second signal ends the process at once",
        ),
        "initial_weights": Row(
            "The same seed with another number of threads; a network made in a forked child",
            "The same initial weights; the child does not hang",
        ),
        "odd_arguments": Row(
            "Wrong shapes, layouts, sizes, numbers and types given to the native module directly",
            "An exception of Python's, or the right answer; never a crash, nor an entry read or "
            "written beyond its array",
        ),
        "swapped_storage": Row(
            "Another thread gives a parameter other memory during a step",
            "What native code reads stays until it is done",
        ),
    },
    "Several ranks": {
        "rank_faults": Row(
            "One rank of a data-parallel step is given NaN or a wrong shape, has other options or "
            "parameters, or its closure raises",
            "That error there, and one that repeats it on every other rank; no parameter moves, "
            "and the next good step is taken. A loss that is not finite on one rank rejects on all",
        ),
        "rank_gone": Row(
            "A rank dies, or hangs for longer than the process group's time-out",
            "The others end with a `RankError`; no parameter moves",
        ),
        "rank_elastic": Row(
            "A machine of an elastic `torchrun --nnodes 1:2` run is gone, with its rank",
            "The other one goes on from the newest checkpoint with all environments, and says that "
            "sums are rounded otherwise from there on",
        ),
        "rank_restart": Row(
            "A rank of a `torchrun --max-restarts` run is killed, with `--deterministic-ranks`",
            "All start again from the newest checkpoint, and the run ends with the weights of one "
            "process that nobody disturbed",
        ),
        "rank_end": Row(
            "A rank that is done ends while its process group still puts away the last collective",
            "It leaves the group first, so that no thread of it can abort the process",
        ),
        "rank_versions": Row(
            "A rank has another version of the package, of its code or of torch",
            "All are refused before the first step, with what differs",
        ),
    },
}
