"""First derivatives of the ops under every transform of torch, and the refusal of those that no backend computes.

The backward of an op is an op, too, and has no derivative: a second derivative would silently lack what the gradient
owes to the logits. `first_derivative` ties a gradient to the tensors that it came from by a node that refuses.
The transforms of torch.func need an autograd.Function where torch.compile needs an op; `transformable` is both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lal_triton.dispatch import constant_in_graphs

REFUSAL = (
    'lal_triton has first derivatives by backward only, expected backend="reference" for others (center loss has none)'
)


class _FirstDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """To refuse, nothing need be saved."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(REFUSAL)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(REFUSAL)


class _Origin(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return logits.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing flows back through an empty tensor."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        return None


def origin(logits: Tensor) -> Tensor:
    """An empty tensor that stands for the logits among the sources of a gradient, and holds no memory of theirs."""
    return logits.new_empty(0) if torch.compiler.is_compiling() else _Origin.apply(logits)


def first_derivative(gradient: Callable[[], Tensor], *sources: Tensor | None) -> Tensor:
    """The gradient, with a refusal to differentiate it by any of the tensors that it was made from."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradient()
    with torch.no_grad():
        value = gradient()
    return _FirstDerivative.apply(value, *(source for source in sources if source is not None))


def are_plain(*tensors: Tensor) -> bool:
    """Whether these are dense tensors, and nothing but autograd looks at the operations.

    Not so in a dispatch mode, a transform or a dual level, and of a subclass.
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided or tensor.is_neg():
            return False
    return True


def backward_is_last(gradient: Tensor) -> bool:
    """Whether the backward that runs is the last that reads its saved tensors, and may write over them."""
    return (
        are_plain(gradient)
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_legacy_batchedtensor(gradient)  # of `is_grads_batched`
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    )


def transformable(op: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]) -> Any:
    """The op as a function that torch.func differentiates, by what torch.library.register_autograd takes."""

    class Transformable(torch.autograd.Function):
        generate_vmap_rule = True

    Transformable.forward = staticmethod(op)  # type: ignore[assignment, method-assign]
    Transformable.setup_context = staticmethod(setup_context)  # type: ignore[assignment, method-assign]
    Transformable.backward = staticmethod(backward)  # type: ignore[assignment, method-assign]

    def call(*arguments: Any) -> Any:
        return (op if torch.compiler.is_compiling() else Transformable.apply)(*arguments)

    return call


@constant_in_graphs  # the compiler enters the transforms that it traces
def transforms() -> str:
    """The transforms of torch.func that are active ("Grad", "Jvp", "Vmap"); a dual level counts as "Jvp"."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    dual = ["Jvp"] if forward_ad._current_level >= 0 else []
    return " ".join(dual + [str(level.key()).rpartition(".")[2] for level in stack])


def backend_in_graph(backend: str, *weights: Tensor | None) -> str:
    """The backend for a transform inside a graph, which sees no op's derivative, nor who is differentiated by."""
    if "Jvp" in transforms():
        raise NotImplementedError("forward mode inside of torch.compile is not supported: do not compile it")
    if backend not in ("auto", "reference") or any(weight is not None for weight in weights):
        raise NotImplementedError(
            'a transform of torch.func inside of torch.compile takes no weights, and backend="reference" or "auto" '
            "alone: transform first and compile what comes of it, or do not compile"
        )
    return "reference"


def map_over_batch(op: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for torch.library.register_vmap: one call for each element, and the results stacked."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        dims = [dim if isinstance(argument, Tensor) else None for argument, dim in zip(arguments, in_dims, strict=True)]
        results = [
            op(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    return rule
