"""Ways to step the environments of a run, by name."""

from __future__ import annotations

VECTORIZATIONS = ("auto", "sync", "workers", "async", "envpool", "tensor")
# Those that give the same bits: a run may be resumed with another of them.
SAME_EPISODES = frozenset({"auto", "sync", "workers", "async"})


def same_episodes(one: object, other: object) -> bool:
    """Whether two of them give the same episodes."""
    return one == other or {one, other} <= SAME_EPISODES
