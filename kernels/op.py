"""The Triton backend: the step of a loss, and the custom op that torch.compile and transforms take in its place.

torch's dispatch of the op would take a third of the host's time for a step on a small image. Plain tensors are spared
it.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lal_triton import derivatives, steps, validation
from lal_triton.dispatch import constant_in_graphs
from lal_triton.kernels import configs
from lal_triton.kernels.host import stand_in
from lal_triton.kernels.host.workspace import WorkspaceLayout
from lal_triton.library import OPTIONS, local_loss_of, register, register_autograd
from lal_triton.options import LocalLoss, Pooling
from lal_triton.steps import Step

if TYPE_CHECKING:
    from lal_triton.kernels.host.plan import Plan, Saved


def prepare(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    options: LocalLoss,
    pooling: Pooling,
    plain: bool,
) -> Step:
    """The step that gives the pooled loss (0-d), or with the reduction "none" the map `[N, H, W]`, float32."""
    differentiable = logits.requires_grad and torch.is_grad_enabled()
    if not plain:
        size = options.kernel_height, options.kernel_width
        saves = differentiable and _saves_exp(*size, logits.dtype, logits.device)
        return functools.partial(_by_op, (*options, *pooling, saves))
    from lal_triton.kernels.host.plan import Plan

    saves_exp = None if differentiable else False  # None: the configuration says
    plan = Plan(logits, target, weight, pixel_weight, options, pooling, saves_exp)
    return functools.partial(_by_plan, plan, differentiable)


@constant_in_graphs  # it reads files and the environment, which are no part of a graph
def _saves_exp(kernel_height: int, kernel_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Of numbers: a graph that makes a record of options cannot hand it over."""
    return configs.saves_exp((kernel_height, kernel_width), dtype, device)


def _by_op(
    rest: tuple[Any, ...], logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
) -> Tensor:
    weight = None if weight is None else weight.detach().contiguous()
    return _differentiable_pooled_loss(logits, target, weight, pixel_weight, *rest)[0]


def _by_plan(
    plan: "Plan",
    differentiable: bool,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> Tensor:
    weight = None if weight is None else weight.contiguous()
    if differentiable:
        return _PooledLoss.apply(logits, (plan, target, weight, pixel_weight))
    return _forward(plan, logits, target, weight, pixel_weight)[0]


def _forward(
    plan: "Plan", logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None
) -> tuple[Tensor, "Saved"]:
    """The plan's, after the checks that read values (on the CPU: a GPU would stall)."""
    if target.device.type == "cpu" and stand_in.current is None:
        validation.check_values(target, weight, pixel_weight, logits.shape[1], plan.ignore_index)
    return plan.forward(logits, target, weight, pixel_weight)


class _PooledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rest: tuple[Any, ...]) -> Tensor:  # a tuple: autograd looks at each argument
        plan, target, weight, pixel_weight = rest
        value, saved = _forward(plan, logits, target, weight, pixel_weight)
        ctx.save_for_backward(logits, weight, pixel_weight, *saved)
        ctx.plan = plan
        ctx.strides = [None if tensor is None else tensor.stride() for tensor in (logits, weight, pixel_weight)]
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, labels, workspace, exp = ctx.saved_tensors

        def of_logits() -> Tensor:
            strided = map(_with_strides, tensors, ctx.strides)
            return ctx.plan.backward(gradient, *strided, (labels, workspace, exp))

        return derivatives.first_derivative(of_logits, gradient, tensors[0]), None


def _with_strides(tensor: Tensor | None, strides: tuple[int, ...] | None) -> Tensor | None:
    """A saved tensor with the strides that the plan knows: hooks may have brought it back with others."""
    if tensor is None or strides is None or tensor.stride() == strides:
        return tensor
    own = [1 if stride == 0 else size for size, stride in zip(tensor.shape, strides, strict=True)]
    held = torch.empty_strided(own, strides, dtype=tensor.dtype, device=tensor.device)
    held.copy_(tensor[tuple(slice(size) for size in own)])
    return held.expand(tensor.shape)


def _pooled_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    plan = _plan(logits, target, weight, pixel_weight, rest)
    value, saved = _forward(plan, logits, target, weight, pixel_weight)
    return value, saved.labels, saved.workspace, value.new_empty(0) if saved.exp is None else saved.exp


def _plan(
    logits: Tensor, target: Tensor, weight: Tensor | None, pixel_weight: Tensor | None, rest: tuple[Any, ...]
) -> "Plan":
    from lal_triton.kernels.host.plan import Plan

    asked = _split(rest)
    inputs = logits, target, weight, pixel_weight
    return steps.find((Plan, asked, steps.key_of(*inputs)), lambda: Plan(*inputs, *asked))


def _split(rest: tuple[Any, ...]) -> tuple[LocalLoss, Pooling, bool]:
    *options, reduction, p, ignore_index, saves_exp = rest
    return local_loss_of(options), Pooling(reduction, p, ignore_index), saves_exp


def _pooled_loss_fake(logits: Tensor, target: Tensor, weight: Tensor | None, _: Any, *rest: Any) -> tuple[Tensor, ...]:
    options, pooling, saves_exp = _split(rest)
    layout = WorkspaceLayout(logits.shape, target.shape, options, pooling, saves_exp)
    return (
        logits.new_empty(target.shape if pooling.reduction == "none" else (), dtype=torch.float32),
        target.new_empty(target.shape, dtype=torch.int32),
        logits.new_empty(layout.size, dtype=torch.float32),
        logits.new_empty(logits.shape if layout.saves_exp else 0, dtype=torch.float32),
    )


def _pooled_loss_backward(
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    labels: Tensor,
    workspace: Tensor,
    exp: Tensor,
    *rest: Any,
) -> Tensor:
    plan = _plan(logits, target, weight, pixel_weight, rest)
    return plan.backward(gradient, logits, weight, pixel_weight, (labels, workspace, exp))


def _pooled_loss_backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.options = inputs[4:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = [None] * (3 + len(ctx.options))
    if gradient is None:
        return None, *none
    logits, *rest = ctx.saved_tensors

    def of_logits() -> Tensor:
        return torch.ops.lal_triton.pooled_loss_backward(gradient, logits, *rest, *ctx.options)

    return derivatives.first_derivative(of_logits, gradient, logits), *none


_REST = f"{OPTIONS}, str reduction, float p, int ignore_index, bool saves_exp"
_INPUTS = "Tensor logits, Tensor target, Tensor? weight, Tensor? pixel_weight"
register(
    f"pooled_loss({_INPUTS}, {_REST}) -> (Tensor value, Tensor labels, Tensor workspace, Tensor exp)",
    _pooled_loss,
    _pooled_loss_fake,
)
register(
    f"pooled_loss_backward(Tensor gradient, {_INPUTS}, Tensor labels, Tensor workspace, Tensor exp, {_REST}) -> Tensor",
    _pooled_loss_backward,
    _pooled_loss_backward_fake,
)
_differentiable_pooled_loss = register_autograd("pooled_loss", _save, _autograd)
