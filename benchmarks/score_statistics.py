"""What a few runs say, and how surely: by the conventions of Agarwal et al. 2021 (rliable).

"Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv:2108.13264, section 4:
the interquartile mean in place of mean or median, percentile intervals of a bootstrap that draws
seeds within each task, and the share of runs above each score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """Mean of the middle half: a quarter of the scores, rounded down, is left out at each end."""
    ordered = np.sort(np.ravel(np.asarray(scores, dtype=np.float64)))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def interval(tasks: Sequence[npt.ArrayLike], share: float = 0.95) -> tuple[float, float]:
    """Of the interquartile mean over all runs of all tasks, by a stratified bootstrap.

    Args:
        tasks: The scores ``[seeds]`` of each task, in one unit.
        share: Of the resamples that lie within.
    """
    rng = np.random.default_rng(0)
    scores = [np.asarray(task, dtype=np.float64) for task in tasks]
    found = [
        interquartile_mean(np.concatenate([rng.choice(task, len(task)) for task in scores]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def profile(tasks: Sequence[npt.ArrayLike], thresholds: npt.ArrayLike) -> Floats:
    """Share of runs above each threshold, every task weighing the same."""
    above = np.asarray(thresholds, dtype=np.float64)[:, None]
    shares = [(np.asarray(task, dtype=np.float64)[None] > above).mean(1) for task in tasks]
    return np.asarray(np.mean(shares, 0), dtype=np.float64)
