"""The problem of one batch: analytic for a recognised perceptron, by autograd for the rest."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from torch import nn

from trpo_fast.backends.generic.modules import fisher_terms, module_terms
from trpo_fast.backends.generic.problem import GenericProblem, refuse_generic
from trpo_fast.backends.registry import fused_problem, serving
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import fused_batch
from trpo_fast.preconditioning.cost import damped_enough, kfac_pays
from trpo_fast.preconditioning.curvature import Curvature, precondition
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.share import SharedProblem
from trpo_fast.update.trust_region import Problem, WholeUpdate


def problem_of(
    module: nn.Module,
    network: Network | str,
    batch: Batch,
    parameters: FlatParameters,
    options: Options,
    curvature: Curvature,
) -> tuple[Problem, Options]:
    """The batch at the parameters of now, on the backend that serves it, with its preconditioner.

    Args:
        module: The policy. A generic problem calls it at each evaluation, not here.
        network: What ``network_of`` found it to be, or why it is not recognised.
        batch: As ``BatchReader`` gave it; without actions only products are served.
        parameters: Those to step, in the flat order.
        options: Checked options.
        curvature: Where the preconditioner's statistics are kept.

    Returns:
        The problem, and the options with which it is to be solved.

    Raises:
        ValueError: the backend or an option asked for does not serve this policy; a wrong width,
            action shape or mask.
        IndexError: a discrete action out of range.
        TypeError: a recognised policy's observations are not one tensor.
    """
    if isinstance(network, Network):
        fused = _fused(network, batch, parameters)
        if options.preconditioner == "auto" and not (
            damped_enough(options.damping, relative=options.relative_damping)
            and kfac_pays(network, fused.all_rows, lasts=curvature.lasts)
        ):
            options = _plain(options)
        problem = fused_problem(network, parameters, fused, options)
        options = precondition(problem, curvature, network, fused, options)
        whole = isinstance(problem, WholeUpdate)
        return problem if whole else _shared(problem, batch), options
    _require_generic(options, network)
    if batch.actions is None:
        terms = fisher_terms(module, batch, options)
        return GenericProblem(parameters, options, fisher_terms=terms), options
    own = GenericProblem(parameters, options, *module_terms(module, batch, options))
    return _shared(own, batch), options


def _require_generic(options: Options, why: str) -> None:
    if options.backend != "auto":
        raise ValueError(f"backend={options.backend!r} cannot serve: {why}")
    refuse_generic(options, why)


def served_by(
    network: Network | str, batch: Batch, parameters: FlatParameters, options: Options
) -> tuple[Batch, str]:
    """The batch as the backend that will serve it takes it, and that backend's name.

    Raises:
        As ``problem_of``, of which this is what can fail.
    """
    if not isinstance(network, Network):
        _require_generic(options, network)
        return batch, "generic"
    fused = _fused(network, batch, parameters)
    return fused, serving(network, fused, options)


def _fused(network: Network, batch: Batch, parameters: FlatParameters) -> Batch:
    width = network.layers[0].weight.shape[1]
    return fused_batch(batch, network.head, width, parameters.dtype)


def _shared(problem: Problem, batch: Batch) -> Problem:
    """The problem of all ranks' rows, where there are several."""
    share = batch.share
    return problem if share is None else SharedProblem(problem, share.ranks, share)


@lru_cache(maxsize=8)  # making options checks them all
def _plain(options: Options) -> Options:
    return replace(options, preconditioner="none")
