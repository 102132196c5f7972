"""TRPO's update as it is written in most places: torch autograd, twice through the mean KL."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Case
from torch import Tensor
from torch.distributions import kl_divergence

Product = Callable[[Tensor], Tensor]


def flat_grad(of: Tensor, parameters: list[Tensor], *, create_graph: bool = False) -> Tensor:
    grads = torch.autograd.grad(of, parameters, create_graph=create_graph, retain_graph=True)
    return torch.cat([g.reshape(-1) for g in grads])


def fisher(case: Case) -> Product:
    """``v -> (F + damping I) v`` ``[P]``: the Hessian of the mean KL at the current weights."""
    parameters: list[Tensor] = list(case.policy.parameters())
    new = case.policy(case.obs)
    with torch.no_grad():
        old = case.policy(case.obs)
    kl_grad = flat_grad(kl_divergence(old, new).mean(), parameters, create_graph=True)
    return lambda v: flat_grad(kl_grad @ v, parameters) + DAMPING * v


def conjugate_gradient(product: Product, g: Tensor) -> Tensor:
    x, r, p = torch.zeros_like(g), g.clone(), g.clone()
    rr = r @ r
    for _ in range(CG_ITERS):
        Ap = product(p)
        alpha = rr / (p @ Ap)
        x += alpha * p
        r -= alpha * Ap
        rr_next = r @ r
        p = r + rr_next / rr * p
        rr = rr_next
    return x


def update(case: Case) -> None:
    """One policy update in place; the weights as before when no candidate is acceptable."""
    parameters: list[Tensor] = list(case.policy.parameters())

    def surrogate() -> Tensor:
        log_prob = case.policy(case.obs).log_prob(case.actions)
        gain: Tensor = (torch.exp(log_prob - case.log_prob) * case.advantages).mean()
        return gain

    before = surrogate()
    g = flat_grad(before, parameters)
    product = fisher(case)
    x = conjugate_gradient(product, g)
    step = torch.sqrt(2 * MAX_KL / (x @ product(x))) * x
    with torch.no_grad():
        old, theta = case.policy(case.obs), torch.nn.utils.parameters_to_vector(parameters)
        for backtrack in range(11):
            candidate = theta + 0.8**backtrack * step
            torch.nn.utils.vector_to_parameters(candidate, parameters)
            kl = kl_divergence(old, case.policy(case.obs)).mean()
            if kl <= MAX_KL and surrogate() > before:
                return
        torch.nn.utils.vector_to_parameters(theta, parameters)
