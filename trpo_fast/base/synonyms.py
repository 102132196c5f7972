"""What options are called elsewhere: for hints in Python, on the command line and in the docs.

Names are those of Stable-Baselines3, sb3-contrib, CleanRL, tianshou, skrl and Spinning Up.
"""

from __future__ import annotations

from collections.abc import Iterable

from trpo_fast.base.option import did_you_mean

# The option that is meant here, first; after a blank, what else there is to know.
SYNONYMS = {
    "target_kl": "max_kl",
    "delta": "max_kl",
    "max_kld": "max_kl",
    "kl_target": "max_kl",
    "gae_lambda": "lam",
    "lambda": "lam",
    "lambda_": "lam",
    "discount_factor": "gamma",
    "learning_rate": "critic_lr (the policy's step is sized by max_kl, not by a rate)",
    "vf_lr": "critic_lr",
    "value_learning_rate": "critic_lr",
    "net_arch": "hidden_sizes (value_hidden_sizes for the value function)",
    "policy_kwargs": "hidden_sizes (activation, log_std_init and distribution are options, too)",
    "activation_fn": "activation",
    "n_steps": "rollout_steps (of each environment)",
    "num_steps": "rollout_steps (of each environment)",
    "steps_per_epoch": "rollout_steps (of each environment)",
    "rollouts": "rollout_steps (of each environment)",
    "n_envs": "num_envs",
    "n_critic_updates": "critic_epochs",
    "n_epochs": "critic_epochs (the policy takes one step a rollout)",
    "update_epochs": "critic_epochs (the policy takes one step a rollout)",
    "train_v_iters": "critic_epochs",
    "optim_critic_iters": "critic_epochs",
    "batch_size": "critic_batch_size (the policy's step takes the whole rollout)",
    "cg_damping": "damping",
    "damping_coeff": "damping",
    "cg_max_steps": "cg_iters",
    "conjugate_gradient_steps": "cg_iters",
    "line_search_shrinking_factor": "backtrack_coeff",
    "step_fraction": "backtrack_coeff",
    "line_search_max_iter": "max_backtracks",
    "backtrack_iters": "max_backtracks",
    "max_backtrack_steps": "max_backtracks",
    "accept_ratio_threshold": "accept_ratio",
    "sub_sampling_factor": "fisher_fraction (1 / sub_sampling_factor)",
    "normalize_advantage": "normalize_advantages",
    "norm_adv": "normalize_advantages",
    "norm_obs": "normalize_observations",
    "norm_reward": "normalize_rewards",
    "tensorboard_log": "run_dir (its event files are TensorBoard's)",
    "log_dir": "run_dir",
    "logdir": "run_dir",
    "vec_env_cls": "vectorization",
    "eval_freq": "eval_every",
    "n_eval_episodes": "eval_episodes",
    "cuda": "device",
}
# What is no option of an agent, with what there is instead.
ELSEWHERE = {
    "total_timesteps": "agent.learn(total_timesteps) says it, and --total-steps of trpo-fast train",
    "n_timesteps": "agent.learn(total_timesteps) says it, and --total-steps of trpo-fast train",
    "timesteps": "agent.learn(total_timesteps) says it, and --total-steps of trpo-fast train",
    "verbose": "agent.learn(..., progress_bar=False) is silent, and --quiet of trpo-fast train",
    "clip_range": "a trust region has none: max_kl bounds the step",
    "clip_coef": "a trust region has none: max_kl bounds the step",
    "ent_coef": "there is no entropy bonus: max_kl keeps the policy from collapsing at once",
    "vf_coef": "the value function has networks and an optimizer of its own: critic_lr",
    "max_grad_norm": "no gradient is clipped: max_kl bounds the step",
}


def hint(name: str, known: Iterable[str], *, dashes: bool = False) -> str:
    """What an unknown name means here, or the nearest known ones; "" where nobody can tell.

    Args:
        name: as it was given.
        known: the names there are, as they are given.
        dashes: whether they are the command line's.
    """
    plain = name.lstrip("-").replace("-", "_")
    known = list(known)
    meant, _, rest = SYNONYMS.get(plain, "").partition(" ")
    written = f"--{meant.replace('_', '-')}" if dashes else meant
    if meant and written in known:
        return f"; that is {written} here{f' {rest}' if rest else ''}"
    if plain in ELSEWHERE:
        return f"; {ELSEWHERE[plain]}"
    return did_you_mean(name, known)
