"""The ranks that torchrun, or Ray Train, started this command as."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trpo_fast.agent.config import OPTIONS
from trpo_fast.base.errors import EnvironmentFault, RankError, UserError
from trpo_fast.base.ranks import Ranks
from trpo_fast.base.threads import own_cores
from trpo_fast.command.last_resort import Told

# What torchrun tells each process it starts.
RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def launched_ranks(options: Mapping[str, Any]) -> Iterator[Ranks | None]:
    """The ranks of this run; None where this process is the only one.

    Args:
        options: those of the agent that were given.

    Raises:
        RankError: the others were not met in time, or are of another version.
    """
    if dist.is_available() and dist.is_initialized():  # by who started this process
        yield Ranks(dist.group.WORLD) if dist.get_world_size() > 1 else None
        return
    if not all(name in os.environ for name in RENDEZVOUS) or os.environ["WORLD_SIZE"] == "1":
        yield None
        return
    torch.set_num_threads(threads_of_rank())
    cuda = str(options.get("device", "")).startswith("cuda")
    if cuda:
        torch.cuda.set_device(local_rank() % max(torch.cuda.device_count(), 1))
    seconds = float(options.get("rank_timeout", OPTIONS["rank_timeout"].default))
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        limit = timedelta(seconds=seconds)
        store, rank, count = next(rendezvous("env://", timeout=limit))
        # The store outlives a restart, and holds the addresses of ranks that are gone.
        again = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{count}"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=PrefixStore(again, store),
            rank=rank,
            world_size=count,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {os.environ['RANK']} did not meet the other {os.environ['WORLD_SIZE']} ranks at "
            f"{where} within {seconds:g} s (rank_timeout): {str(error).splitlines()[0]}"
        ) from error
    try:
        ranks = Ranks(dist.group.WORLD)
        yield ranks
    except (KeyboardInterrupt, EnvironmentFault, RankError, UserError, Told):
        raise  # told, and then left at once, by cli.main
    except BaseException:  # noqa: BLE001 (printed)
        traceback.print_exc()
        os._exit(1)  # the interpreter would wait for what other ranks have not sent
    dist.destroy_process_group()
    ranks.leave()


def on_first(ranks: Ranks | None, compute: Callable[[], Any]) -> Any:
    """What rank 0 computes, everywhere."""
    return compute() if ranks is None else ranks.from_first(compute)


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_restart() -> bool:
    """Whether torchrun has started this run again, after a rank failed or the ranks changed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def threads_of_rank() -> int:
    """Threads that a rank computes with: its part of the machine's cores, unless the user says.

    OMP_NUM_THREADS says otherwise; torchrun sets that to 1 where the user has not.
    """
    said = os.environ.get("OMP_NUM_THREADS", "1") != "1"
    return torch.get_num_threads() if said else own_cores()
