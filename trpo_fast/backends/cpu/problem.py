"""The native CPU backend: checks in Python, once, then one native call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trpo_fast._native import kernels
from trpo_fast.backends.codes import head_arguments, head_refusal
from trpo_fast.backends.cpu.arguments import (
    held_layers,
    layer_args,
    slab_preconditioner,
    slabs_of,
    tensor_arg,
)
from trpo_fast.backends.cpu.shared_buffers import SharedBuffers
from trpo_fast.backends.cpu.workspace import Workspace
from trpo_fast.backends.native_update import (
    SOLVE_STATUS,
    solve_options,
    update_options,
    update_result,
)
from trpo_fast.backends.reference.rounding import ROUNDINGS
from trpo_fast.base.tensors import strided_rows
from trpo_fast.networks.head import Head
from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.kfac import signs_of
from trpo_fast.preconditioning.preconditioner import KroneckerStatistics, Place, Preconditioner
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution, TrustRegionResult
from trpo_fast.update.trust_region import WholeUpdate

if TYPE_CHECKING:
    from trpo_fast._core import PreconditionerArg, TensorArg

# precision="auto" takes bfloat16 from so many multiply-adds of one product on, rows times weights:
# where a batch is small, packing costs what the products gain.
BF16_WORK = 1 << 22
# Activations of the whole batch are kept up to this size; those of further rows are computed again
# by each product, for about a quarter more work, so that memory stays bounded.
CACHE_BYTES = 256 << 20


def refusal(network: Network, batch: Batch, options: Options) -> str | None:
    """Why ``CpuProblem`` cannot serve, or None."""
    missing = head_refusal(network.head)
    if missing is not None:
        return missing
    if options.precision == "tf32":
        return "precision='tf32' is of CUDA's tensor cores; 'bf16x3' is near it"
    if options.precision.startswith("bf16") and network.layers[0].weight.dtype != torch.float32:
        return (
            f"precision={options.precision!r} needs float32 parameters, "
            f"these are {network.layers[0].weight.dtype}"
        )
    device = network.layers[0].weight.device
    if device.type != "cpu" or batch.obs.device.type != "cpu":
        return f"the parameters are on {device}, and it serves the CPU"
    return None


def bf16_parts(network: Network, batch: Batch, options: Options) -> int:
    """How many bfloat16 each operand of a Fisher product is made of; 0: they stay float32.

    "auto" rounds only where the CPU has the instruction, and only under a K-FAC preconditioner:
    it leaves few iterations for the rounding to spoil, while plain conjugate gradients lose some
    of their step to it. Where K-FAC does not pay, ``problem_of`` has made "auto" a "none".
    """
    if options.precision != "auto":
        return ROUNDINGS[options.precision].parts
    if network.layers[0].weight.dtype != torch.float32 or not kernels.bf16_instruction():
        return 0
    weights = sum(layer.weight.numel() for layer in network.layers)
    if batch.all_rows * options.fisher_fraction * weights < BF16_WORK:
        return 0
    return int(options.preconditioner in ("auto", "kfac"))


class CpuProblem(KroneckerStatistics, WholeUpdate):
    """A ``trust_region.Problem`` for a recognised network, served by the native module.

    Holds the batch's tensors and the workspace for the time of one update. The native side reads
    parameters where they live and writes none.

    Args:
        network: What ``network_of`` gave; its tensors are the module's parameters.
        parameters: The flat order. Network tensors that are not in it are frozen.
        batch: As ``fused_batch`` gave it. Without actions only products are served.
        options: Checked options.
    """

    backend = "cpu"
    preconditioner: Preconditioner | None = None
    gains_known = True

    def __init__(
        self, network: Network, parameters: FlatParameters, batch: Batch, options: Options
    ) -> None:
        self.network, self.parameters, self.options = network, parameters, options
        self._share = batch.share
        self._layers = held_layers(network.layers, parameters.held)
        self._dtype = dtype = parameters.dtype
        self._tensors: list[Tensor] = []
        self._size = parameters.count
        self._rows, self._outputs = batch.rows, network.layers[-1].weight.shape[0]

        def place(tensor: Tensor | None) -> int:
            start = parameters.offset_of(tensor)
            return -1 if start is None else start

        parameters.use(network.tensors())
        native = kernels.PolicyProblemF32 if dtype is torch.float32 else kernels.PolicyProblemF64
        head = network.head
        # A module may keep it [1, A]; the view has the parameter's own memory.
        log_std = None
        if network.log_std is not None:
            log_std = parameters.held(network.log_std).reshape(-1)
        self._native = native(
            obs=self._arg(batch.obs, dtype),
            layers=layer_args(self._layers, dtype),
            offsets=[(place(layer.weight), place(layer.bias)) for layer in network.layers],
            parameters=self._size,
            **head_arguments(head),
            log_std=self._arg(log_std, dtype),
            log_std_offset=place(network.log_std),
            actions=self._actions(batch, head),
            advantages=self._vector(batch.advantages, dtype),
            old_log_prob=self._vector(batch.old_log_prob, torch.float64),
            weights=self._vector(batch.weights, dtype),
            action_mask=self._mask(batch.action_mask),
            kl_new_old=options.kl_direction == "new_old",
            cache_bytes=CACHE_BYTES,
            threads=torch.get_num_threads(),
            bf16_parts=bf16_parts(network, batch, options),
            **self._fisher_rows(batch, options.fisher_fraction),
        )
        self._memory = Workspace(self._native.workspace_bytes())
        self._native.bind(self._memory.address)
        self._prepared = False
        self._can_differentiate = batch.actions is not None and batch.advantages is not None
        self._work: tuple[Workspace, Tensor] | None = None
        self._loss: float | None = None  # with the gradient in the first row of the work

    def update(self, options: Options, unit: float) -> TrustRegionResult:
        """``trust_region.update``'s steps up to the accepted parameters, in one native call."""
        theta = self.parameters.start
        candidate, work = torch.empty_like(theta), self._update_work()
        loss, self._loss = self._loss, None  # the gradient is scaled where it stands
        shared = None if self._share is None else SharedBuffers(self._share, theta)
        figures = self._native.update(
            tensor_arg(theta, self._dtype),
            tensor_arg(candidate, self._dtype),
            tensor_arg(work, self._dtype),
            update_options(options, unit, self.preconditioner is not None),
            self._preconditioner(),
            loss,
            None if shared is None else shared.argument,
        )
        if shared is not None:
            shared.check(figures, candidate)
        result = update_result(figures, options, self.backend)
        if result.accepted:
            self.parameters.replace(theta, candidate)
        return result

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``."""
        return self._differentiate(), self._update_work()[0].clone()

    def solve(self, g: Tensor, options: Options) -> Solution:
        """Conjugate gradients, whole, in one native call."""
        self._prepare()
        x, work = torch.empty_like(g), g.new_empty(4, len(g))
        code, iterations, residual, quadratic = self._native.solve(
            tensor_arg(g, self._dtype),
            tensor_arg(x, self._dtype),
            tensor_arg(work, self._dtype),
            solve_options(options, self.preconditioner is not None),
            self._preconditioner(),
        )
        return Solution(x, quadratic, iterations, residual, SOLVE_STATUS[code])

    def input_moments(self, places: Mapping[int, Place], rows: int) -> list[Tensor]:
        """A of the layers in ``places``, from the activations that are kept for the products."""
        self._prepare()
        kept = min(rows, self._native.kept_rows())
        if kept == 0:
            return self._factors(places, rows, inputs=True)
        found, targets = [], []
        for index in range(len(self.network.layers)):
            at = places.get(index)
            target = None
            if at is not None:
                found.append(self._square(at.columns))
                if at.weight is not None:
                    target = tensor_arg(found[-1], self._dtype), at.bias is not None
            targets.append(target)
        memory = Workspace(self._native.moment_bytes(kept))
        self._native.input_moments(kept, targets, memory.address)
        return found

    def output_moments(
        self, places: Mapping[int, Place], rows: int, first: int = 0
    ) -> list[Tensor]:
        """G of the layers in ``places``, over evenly strided rows of the batch."""
        return self._factors(places, rows, inputs=False, first=first)

    def inverse(self, factor: Tensor, damping: float) -> Tensor:
        """``(factor + damping I)^-1`` in slabs, as csrc/cpu/kernels/slabs.h lays it out.

        Raises:
            torch.linalg.LinAlgError: it is not positive definite.
        """
        single = self._dtype is torch.float32
        invert = kernels.damped_inverse_f32 if single else kernels.damped_inverse_f64
        count, width = slabs_of(len(factor))
        found = factor.new_empty(count, len(factor), width)
        matrix, to = tensor_arg(factor, self._dtype), tensor_arg(found, self._dtype)
        if not invert(matrix, damping, to, torch.get_num_threads()):
            raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
                f"a factor of {len(factor)} rows with {damping:.3g} on its diagonal is not "
                "positive definite"
            )
        return found

    def _square(self, size: int) -> Tensor:
        """A factor to be filled in; that of a bias alone stays [[1]]."""
        if size == 1:
            return torch.ones(1, 1, dtype=self._dtype, device="cpu")
        return torch.empty(size, size, dtype=self._dtype, device="cpu")

    def _factors(
        self, places: Mapping[int, Place], rows: int, *, inputs: bool, first: int = 0
    ) -> list[Tensor]:
        """A or G of the layers in ``places``, by passes of their own."""
        rows = min(rows, self._rows)
        signs = signs_of(rows, self._outputs, self._dtype, first)
        memory = Workspace(self._native.factor_bytes(rows))
        found: list[Tensor] = []
        targets: list[tuple[TensorArg | None, bool, TensorArg | None]] = []
        for index in range(len(self.network.layers)):
            at = places.get(index)
            if at is None:
                targets.append((None, False, None))
                continue
            size = at.columns if inputs else at.outputs
            found.append(self._square(size))
            argument = tensor_arg(found[-1], self._dtype)
            bias = at.bias is not None
            if not inputs:
                targets.append((None, bias, argument))
            else:
                targets.append((None if at.weight is None else argument, bias, None))
        self._native.kronecker_factors(tensor_arg(signs, self._dtype), targets, memory.address)
        return found

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping, over the Fisher's share of the rows."""
        self._prepare()
        v = v.contiguous()
        out = torch.empty_like(v)
        self._native.fisher_product(tensor_arg(v, self._dtype), 0.0, tensor_arg(out, self._dtype))
        return out

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at ``theta`` ``[P]``; ``gradient`` must have run."""
        return self._native.evaluate(tensor_arg(theta, self._dtype))

    def _preconditioner(self) -> PreconditionerArg | None:
        if self.preconditioner is None:
            return None
        return slab_preconditioner(self.preconditioner).argument

    def _update_work(self) -> Tensor:
        if self._work is None:
            size = 6 * self._size * self._dtype.itemsize
            memory = Workspace(size)
            vectors = memory.memory[:size].view(self._dtype).view(6, self._size)
            self._work = memory, vectors
        return self._work[1]

    def _prepare(self) -> None:
        """Keep the activations: the gradient does, and the update needs it anyway."""
        if self._prepared:
            return
        if self._can_differentiate:
            self._differentiate()
        else:
            self._native.prepare_fisher()
            self._prepared = True

    def _differentiate(self) -> float:
        """The loss; its gradient goes where the update looks for it."""
        g = self._update_work()[0]
        loss = self._loss = self._native.gradient(tensor_arg(g, self._dtype))
        self._prepared = True
        return loss

    def _arg(self, tensor: Tensor | None, dtype: torch.dtype) -> TensorArg | None:
        if tensor is None:
            return None
        tensor = tensor.resolve_neg()
        self._tensors.append(tensor)
        return tensor_arg(tensor, dtype)

    def _vector(self, tensor: Tensor | None, dtype: torch.dtype) -> TensorArg | None:
        return None if tensor is None else self._arg(tensor.to(dtype).contiguous(), dtype)

    def _actions(self, batch: Batch, head: Head) -> TensorArg | None:
        actions = batch.actions
        if actions is None:
            return None
        columns = actions.unsqueeze(1) if actions.ndim == 1 else actions
        return self._arg(columns, torch.int64 if head.integral else self._dtype)

    def _mask(self, mask: Tensor | None) -> TensorArg | None:
        if mask is None:
            return None
        return self._arg(mask.contiguous().view(torch.uint8), torch.uint8)

    def _fisher_rows(self, batch: Batch, fraction: float) -> dict[str, Any]:
        if fraction == 1.0:
            return dict.fromkeys(("fisher_obs", "fisher_weights", "fisher_action_mask"))
        chosen = strided_rows(batch.rows, fraction, batch.obs.device)
        weights = None if batch.weights is None else batch.weights[chosen]
        mask = None if batch.action_mask is None else batch.action_mask[chosen]
        return {
            "fisher_obs": self._arg(batch.obs[chosen], self._dtype),
            "fisher_weights": self._vector(weights, self._dtype),
            "fisher_action_mask": self._mask(mask),
        }
