"""``TRPOOptimizer``: the torch.optim contract around ``trust_region.update``; nothing numerical."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trpo_fast.backends.generic.problem import GenericProblem, ModelCall, Term, refuse_generic
from trpo_fast.backends.generic.staleness import backward_named
from trpo_fast.base.errors import say_once
from trpo_fast.base.modes import Draws, own_precision, twice_differentiable
from trpo_fast.base.ranks import Ranks, checksum, warn_if_alone
from trpo_fast.base.tensors import all_finite
from trpo_fast.base.uncompiled import LightOptimizer, uncompiled
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.adaptation import adapted_beta, adapted_damping
from trpo_fast.optimizer.batch_reader import BatchReader
from trpo_fast.optimizer.closures import ClosureResult, read_closure
from trpo_fast.optimizer.keywords import Keywords, Params, served, takes_options
from trpo_fast.optimizer.membership import refuse_changed
from trpo_fast.optimizer.problems import problem_of, served_by
from trpo_fast.optimizer.shared_batch import (
    Read,
    any_action,
    settings_of,
    shared_batch,
    stand_in,
    unwrapped,
)
from trpo_fast.optimizer.state import check_loaded, number
from trpo_fast.preconditioning.curvature import AGE, Curvature
from trpo_fast.recognition.recognizer import UNDECIDED, network_of
from trpo_fast.update.options import TABLE, Options, from_group
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import TrustRegionResult
from trpo_fast.update.share import Own, Share, SharedProblem, failing_together
from trpo_fast.update.trust_region import update


class Samples(NamedTuple):
    """What the keyword form of ``step`` was given."""

    obs: Any
    actions: Any
    advantages: Any
    old_log_prob: Any
    weights: Any
    action_mask: Any


class TRPOOptimizer(LightOptimizer):
    """Trust Region Policy Optimization as a torch optimizer (Schulman et al. 2015, 1502.05477).

    ::

        opt = TRPOOptimizer(policy)
        loss = opt.step(obs=obs, actions=actions, advantages=adv, old_log_prob=logp)

        opt = TRPOOptimizer(policy.parameters())
        loss = opt.step(closure)  # closure() -> (loss, distribution)

    After a step with ``constraint="hard"``, either ``last_result.accepted`` holds, the mean KL
    over the batch is at most ``max_kl`` and the surrogate improved; or every parameter is
    bit-identical to before. All options stand in ``param_groups[0]`` and may be edited between
    steps; they are checked again at each step.

    Args:
        params: A policy module whose ``forward(obs)`` returns a torch distribution with
            batch_shape [N]; or parameters, as every torch optimizer takes them, in one group.
        process_group: A ``torch.distributed`` group whose ranks each bring rows of their own: every
            mean is over all of them, and all make the same step. Making the optimizer and each step
            are then collectives. None: this process alone.
        options: Those of the option table, ``update.options``, by keyword; ``__init__`` and
            ``docs/options.md`` say what each means.

    Attributes:
        last_result: The last step's ``TrustRegionResult``, or None.
        path: "fused" (analytic Fisher products) or "generic" (autograd).
        path_reason: Why, in words.
        ranks: Those of ``process_group``, with figures of their collectives, or None.

    Raises:
        ValueError: an option out of its limits, more than one group, a parameter of another kind
            than dense float32 or float64, or a named backend that can never serve.
    """

    last_result: TrustRegionResult | None
    ranks: Ranks | None
    _checked: tuple[tuple[Any, ...], Options] | None = None
    _curvature: Curvature | None = None
    _named: tuple[list[int], list[str]] | None = None

    @takes_options(Keywords)
    def __init__(self, params: Params, **options: Any) -> None:
        group_of_ranks = options.pop("process_group", None)
        if isinstance(params, nn.Module):
            params = unwrapped(params, shared=group_of_ranks is not None)
        if group_of_ranks is None:
            warn_if_alone()
        self.ranks = None if group_of_ranks is None else Ranks.of(group_of_ranks)
        given = served(options)
        lr = given.get("lr", Options.lr)
        group = Options(**{**given, "lr": number("lr", lr)}).as_group()
        if isinstance(lr, Tensor):
            group["lr"] = lr
        self.module = params if isinstance(params, nn.Module) else None
        self.last_result = None
        super().__init__(params.parameters() if isinstance(params, nn.Module) else params, group)
        checked = self._options()
        self._flat_parameters()
        self.path, self.path_reason = "generic", "the parameters came without their module"
        network = None if self.module is None else self._recognise(checked, None, None)
        settled = isinstance(network, Network) or network == UNDECIDED
        if checked.backend != "auto" and not settled:
            raise ValueError(
                f"backend={checked.backend!r} cannot serve: {self.path_reason}; use backend='auto'"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: one step is one trust region over one group.

        Raises:
            ValueError: there is a group already.
        """
        if self.param_groups:
            raise ValueError(
                "TRPOOptimizer steps one parameter group: one trust region holds all its "
                "parameters. Put them in one list, or use a second optimizer"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        own = ("module", "last_result", "path", "path_reason", "ranks")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" not in state:  # from load_state_dict, which has changed nothing yet
            check_loaded(state)
        super().__setstate__(state)
        for group in self.param_groups:
            for name in TABLE:
                group.setdefault(name, self.defaults[name])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What ``torch.amp.GradScaler.step`` asks for before it does anything."""
        raise RuntimeError(
            "TRPOOptimizer takes no GradScaler: it neither reads nor writes .grad, so there is "
            "nothing to unscale; call optimizer.step(...) itself"
        )

    @uncompiled
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], ClosureResult] | None = None,
        *,
        obs: Any = None,
        actions: Any = None,
        advantages: Any = None,
        old_log_prob: Any = None,
        weights: Any = None,
        action_mask: Any = None,
    ) -> Tensor:
        """One update; either form.

        Floating inputs are cast to the parameters' dtype. Every mean is ``sum(w .) / sum(w)``.

        Args:
            closure: ``() -> (loss, distribution)`` or ``(loss, distribution, weights)``, without
                ``backward``; called under enable_grad once and under no_grad for each candidate.
            obs: ``[N, O]``, or any nesting of ``[N, ...]`` tensors that the policy takes.
            actions: What ``distribution.sample()`` gave, unclipped; of a joint distribution nested,
                or flat.
            advantages: ``[N]``, used as given.
            old_log_prob: ``[N]`` log-probabilities of the actions under the policy that took
                them; None is the policy's own.
            weights: ``[N]``, >= 0, not all 0; rows of weight 0 may hold anything.
            action_mask: ``[N, n]`` bool, handed to ``forward``.

        Returns:
            The loss before the step: a detached 0-d tensor of the parameters' dtype, or of float64
            where a finite loss is beyond that dtype.

        Raises:
            ValueError: an input of a wrong shape or device, or not finite, named with its index;
                an empty batch; an invalid option; a parameter that the module no longer has. The
                parameters are untouched.
            IndexError: a discrete action out of range.
            TypeError: neither or both forms, or a closure without a distribution.
        """
        given = Samples(obs, actions, advantages, old_log_prob, weights, action_mask)
        with failing_together(self.ranks):
            return self._step(closure, given)

    def _step(self, closure: Callable[[], ClosureResult] | None, given: Samples) -> Tensor:
        options = self._options()
        empty = all(item is None for item in given)
        if closure is None and empty and options.lr == 0:
            # torch.distributed.checkpoint has an optimizer make its state by such a step.
            return torch.zeros((), device=self.param_groups[0]["params"][0].device)
        if (closure is None) == empty:
            raise TypeError("step takes a closure, or obs=, actions=, advantages=; not both")
        parameters = self._flat_parameters()
        if self.module is not None:
            refuse_changed(self.module, parameters)
        with own_precision(parameters.device):
            if closure is not None:
                result = self._closure_step(closure, parameters, options)
            else:
                result = self._batch_step(given, parameters, options)
        if options.maximize:
            result = replace(result, loss_before=-result.loss_before, loss_after=-result.loss_after)
        if options.constraint == "penalty" and options.adaptive_beta and result.accepted:
            self.param_groups[0]["beta"] = adapted_beta(options, result.kl)
        if options.adaptive_damping:
            self.param_groups[0]["damping"] = adapted_damping(options, result)
        self.last_result = result
        wide = torch.finfo(parameters.dtype).max < abs(result.loss_before) < float("inf")
        dtype = torch.float64 if wide else parameters.dtype
        return torch.tensor(result.loss_before, dtype=dtype, device=parameters.device)

    def _closure_step(
        self, closure: Callable[[], ClosureResult], parameters: FlatParameters, options: Options
    ) -> TrustRegionResult:
        self.path, self.path_reason = "generic", "a closure can compute anything"
        if options.backend != "auto":
            raise ValueError(
                f"backend={options.backend!r} cannot serve a closure, which can compute anything; "
                "use backend='auto', or the keyword form of step"
            )
        refuse_generic(options, self.path_reason)
        sign = -1.0 if options.maximize else 1.0
        draws = Draws(options.noise, parameters.device)

        def evaluation() -> ModelCall:
            with draws.same():
                return read_closure(closure(), sign, shared=self.ranks is not None)

        problem = GenericProblem(
            parameters,
            options,
            [Term(evaluation, 1.0)],
            by_dependence=self.module is not None,
        )
        with twice_differentiable(self.module, options.noise), backward_named():
            if self.ranks is None:
                return update(problem, options)

            def tell() -> Own:
                settings = settings_of(options, parameters, "closure")
                weights, fisher = problem.weights()
                rows = int(weights > 0)
                return Own(checksum([parameters.start]), settings, rows, 1.0, weights, fisher)

            shared = SharedProblem(problem, self.ranks, None, tell)
            return update(shared, options, agreed=self.ranks.agreed)

    def _batch_step(
        self, given: Samples, parameters: FlatParameters, options: Options
    ) -> TrustRegionResult:
        if self.module is None:
            raise TypeError(
                "step(obs=, ...) needs the policy module: construct TRPOOptimizer(policy), or "
                "give step a closure"
            )
        ranks = self.ranks
        if ranks is None:
            read = self._read(given, parameters, options)
            batch, network = read.batch, read.network
        else:
            batch, network = shared_batch(
                ranks,
                lambda: self._read(given, parameters, options),
                parameters,
                options,
                self._statistics,
            )
        if self._curvature is None or self._curvature.state is not self.state:
            self._curvature = Curvature(self.state)
        agreed = float if ranks is None else ranks.agreed
        problem, options = problem_of(
            self.module, network, batch, parameters, options, self._curvature
        )
        if isinstance(network, Network):
            if self.state:  # torch.distributed.checkpoint wants an entry for each or for none
                for p in parameters.tensors:
                    self.state.setdefault(p, {AGE: 0})
            return update(problem, options, unit=batch.unit, agreed=agreed)
        if getattr(self.module, "observation", "") != "structured":  # those are made for it
            say_once(
                f"TRPOOptimizer takes the generic path: {network}. The step is as exact there, and "
                "takes longer"
            )
        with twice_differentiable(self.module, options.noise), backward_named():
            return update(problem, options, unit=batch.unit, agreed=agreed)

    def _read(self, given: Samples, parameters: FlatParameters, options: Options) -> Read:
        """The arguments of the keyword form, checked; also for which backend, where ranks ask."""
        values, empty = given._asdict(), False
        if self.ranks is not None:
            values, empty = stand_in(values)
        reader = BatchReader(
            values["obs"], values["weights"], dtype=parameters.dtype, device=parameters.device
        )
        if empty and self.module is not None:
            values["actions"] = any_action(self.module, reader.obs, parameters.device)
        batch = reader.batch(
            values["actions"],
            values["advantages"],
            values["old_log_prob"],
            values["action_mask"],
        )
        network = self._recognise(options, batch.obs, batch.action_mask)
        backend = "generic"
        if self.ranks is not None:
            batch = batch._replace(share=Share(self.ranks, 1.0, 1.0, batch.rows, batch.rows))
            batch, backend = served_by(network, batch, parameters, options)
        return Read(batch, empty, reader.weight_scale, network, backend)

    def _statistics(self) -> int:
        """A checksum of what the preconditioner keeps: a later step depends on it."""
        kept = [v for entry in self.state.values() for v in entry.values()]
        ages = sum(int(v) for v in kept if not isinstance(v, Tensor))
        return checksum([v for v in kept if isinstance(v, Tensor)]) + ages

    def _recognise(self, options: Options, obs: Any, action_mask: Tensor | None) -> Network | str:
        assert self.module is not None  # noqa: S101
        network: Network | str
        if options.noise == "fixed" and any(m.training for m in self.module.modules()):
            network = "noise='fixed' keeps the module in train mode; .eval() it if it has no noise"
        else:
            network = network_of(self.module, obs, action_mask)
        if isinstance(network, Network):
            self.path, self.path_reason = "fused", "the policy is recognised as a perceptron"
        else:
            self.path, self.path_reason = "generic", network
        return network

    def _options(self) -> Options:
        group = self.param_groups[0]
        values = tuple(group.get(name) for name in TABLE)
        if isinstance(group.get("lr"), Tensor):  # schedulers write into it: never the same twice
            group = {**group, "lr": number("lr", group["lr"])}
            return from_group(group)
        if self._checked is not None:
            known, options = self._checked
            # By identity: 1 == True, and NaN != NaN.
            if all(map(operator.is_, values, known)):
                return options
        options = from_group(group)
        self._checked = values, options
        return options

    def _names(self, group: dict[str, Any]) -> list[str]:
        """What error messages call the parameters."""
        key = [id(p) for p in group["params"]]
        if self._named is None or self._named[0] != key:
            names = group.get("param_names") or [f"parameter {i}" for i in range(len(key))]
            if self.module is not None:
                found = {id(p): name for name, p in self.module.named_parameters()}
                names = [found.get(i, name) for i, name in zip(key, names, strict=True)]
            self._named = key, names
        return self._named[1]

    def _flat_parameters(self) -> FlatParameters:
        """The parameters to step, checked.

        Raises:
            ValueError: none requires a gradient; one is not dense, of another dtype or device than
                the first, or not finite.
        """
        group = self.param_groups[0]
        names = self._names(group)
        pairs = [
            (p, name) for p, name in zip(group["params"], names, strict=True) if p.requires_grad
        ]
        if not pairs:
            raise ValueError("no parameter requires a gradient: there is nothing to step")
        first = pairs[0][0]
        for p, name in pairs:
            if p.dtype not in (torch.float32, torch.float64) or p.layout is not torch.strided:
                raise ValueError(
                    f"{name} is {p.layout} {p.dtype}; TRPOOptimizer steps dense float32 and "
                    "float64 parameters: convert the policy with .float()"
                )
            if p.dtype != first.dtype or p.device != first.device:
                raise ValueError(
                    f"{name} is {p.dtype} on {p.device}, {pairs[0][1]} is {first.dtype} on "
                    f"{first.device}; bring them to one dtype and device"
                )
        parameters = FlatParameters([p for p, _ in pairs], [name for _, name in pairs])
        if not all_finite(parameters.start):
            raise ValueError(
                f"{parameters.first_non_finite()} holds a NaN or an infinity already before the "
                "step; load a good checkpoint"
            )
        return parameters
