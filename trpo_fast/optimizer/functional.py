"""Fisher products and natural gradients without an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trpo_fast.base.modes import own_precision, twice_differentiable
from trpo_fast.base.tensors import all_finite, norm, plus
from trpo_fast.optimizer.batch_reader import BatchReader
from trpo_fast.optimizer.problems import problem_of
from trpo_fast.preconditioning.curvature import Curvature
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution
from trpo_fast.update.trust_region import Problem


def fisher_vector_product(
    policy: nn.Module,
    obs: Any,
    vector: Tensor,
    *,
    damping: float = 0.0,
    weights: Any = None,
    backend: str = Options.backend,
    precision: str = "fp32",
) -> Tensor:
    """``(F + damping I) vector`` ``[P]`` with F the Fisher matrix of the policy's mean KL.

    Args:
        policy: Module whose ``forward(obs)`` returns a distribution with batch_shape [N].
        obs: ``[N, O]``, or any nesting of ``[N, ...]`` tensors that the policy takes.
        vector: ``[P]`` in the order of ``policy.parameters()``. The entries of parameters that
            require no gradient are ignored, and are 0 in the result.
        damping: Added to the diagonal.
        weights: ``[N]`` weights of the rows, >= 0, or None.
        backend: As for ``TRPOOptimizer``.
        precision: As for ``TRPOOptimizer``.

    Raises:
        ValueError: a wrong shape, a value that is not finite, or an option that is not served.
        TypeError: a vector that is no tensor, a policy that is no module.
    """
    options = Options(damping=damping, backend=backend, precision=precision)
    places = _Places(policy)
    v = places.gather("vector", vector)
    with own_precision(v.device), twice_differentiable(policy):
        product = _products(policy, places.parameters, obs, weights, options).fisher_product(v)
    return places.scatter(plus(product, v, damping))


def natural_gradient(
    policy: nn.Module,
    obs: Any,
    gradient: Tensor,
    *,
    damping: float = Options.damping,
    cg_iters: int = Options.cg_iters,
    cg_tol: float = Options.cg_tol,
    cg_progress_tol: float = 0.0,
    preconditioner: str = Options.preconditioner,
    precision: str = Options.precision,
    fisher_fraction: float = Options.fisher_fraction,
    weights: Any = None,
    backend: str = Options.backend,
) -> tuple[Tensor, Solution]:
    """The direction ``x`` ``[P]`` that solves ``(F + damping I) x = gradient``, and figures.

    Args:
        policy: As for ``fisher_vector_product``.
        obs: As for ``fisher_vector_product``.
        gradient: ``[P]`` in the order of ``policy.parameters()``.
        damping: Added to the diagonal.
        cg_iters: As for ``TRPOOptimizer``.
        cg_tol: As for ``TRPOOptimizer``.
        cg_progress_tol: As for ``TRPOOptimizer``, but 0 unless given: here the solution counts.
        preconditioner: As for ``TRPOOptimizer``; its statistics are made anew at each call.
        precision: As for ``TRPOOptimizer``.
        fisher_fraction: As for ``TRPOOptimizer``.
        weights: ``[N]`` weights of the rows, >= 0, or None.
        backend: As for ``TRPOOptimizer``.

    Returns:
        The direction and the ``Solution`` with its figures; a zero gradient gives zeros.

    Raises:
        ValueError: a wrong shape, a value that is not finite, or an option that is not served.
        TypeError: a gradient that is no tensor, a policy that is no module.
    """
    options = Options(
        damping=damping,
        cg_iters=cg_iters,
        cg_tol=cg_tol,
        cg_progress_tol=cg_progress_tol,
        preconditioner=preconditioner,
        precision=precision,
        fisher_fraction=fisher_fraction,
        backend=backend,
    )
    places = _Places(policy)
    g = places.gather("gradient", gradient)
    size = norm(g)
    if size == 0:
        return places.scatter(g), Solution(places.scatter(g), 0.0, 0, 0.0)
    with own_precision(g.device), twice_differentiable(policy):
        problem = _products(policy, places.parameters, obs, weights, options)
        found = problem.solve((g.double() / size).to(g.dtype), options)
    x = places.scatter((found.x.double() * size).to(g.dtype))
    quadratic = found.quadratic * size * size
    return x, Solution(x, quadratic, found.cg_iters, found.residual, found.status)


class _Places:
    """Where the parameters that require a gradient stand among all of them."""

    def __init__(self, policy: nn.Module) -> None:
        if not isinstance(policy, nn.Module):
            raise TypeError(f"policy is a {type(policy).__name__}, expected an nn.Module")
        named = list(policy.named_parameters())
        self.all = FlatParameters([p for _, p in named], [name for name, _ in named])
        chosen = [(name, p) for name, p in named if p.requires_grad]
        if not chosen:
            raise ValueError("no parameter requires a gradient")
        self.parameters = FlatParameters([p for _, p in chosen], [name for name, _ in chosen])

    def gather(self, name: str, vector: Tensor) -> Tensor:
        if not isinstance(vector, Tensor):
            raise TypeError(
                f"{name} is a {type(vector).__name__}, expected a tensor like the parameters: "
                f"torch.as_tensor(..., dtype={self.all.dtype})"
            )
        count = self.all.count
        if tuple(vector.shape) != (count,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({count},)")
        if vector.dtype != self.all.dtype or vector.device != self.all.device:
            raise ValueError(
                f"{name} is {vector.dtype} on {vector.device}, the parameters are "
                f"{self.all.dtype} on {self.all.device}"
            )
        if vector.layout is not torch.strided:
            raise ValueError(f"{name} must be dense, got {vector.layout}")
        if not all_finite(vector):
            raise ValueError(f"{name} holds a NaN or an infinity")
        parts = zip(self.all.tensors, self.all.split(vector.detach()), strict=True)
        return self.parameters.flatten([part for p, part in parts if p.requires_grad])

    def scatter(self, vector: Tensor) -> Tensor:
        parts = iter(self.parameters.split(vector))
        return self.all.flatten(
            [next(parts) if p.requires_grad else None for p in self.all.tensors]
        )


def _products(
    policy: nn.Module, parameters: FlatParameters, obs: Any, weights: Any, options: Options
) -> Problem:
    batch = BatchReader(obs, weights, dtype=parameters.dtype, device=parameters.device).inputs()
    network = network_of(policy, batch.obs, batch.action_mask)
    return problem_of(policy, network, batch, parameters, options, Curvature())[0]
