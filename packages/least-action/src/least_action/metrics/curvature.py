"""Gradients and curvature of the loss and of the function a network computes.

Shapes: N samples, P residues (classes), E the shape of one continuous input (2P for MLPs, T x D for transformers),
C classes or pairs handled at once, W trainable values.

No function here changes the model: gradients are returned, never left in `.grad`, the training mode stays as it is,
and random numbers come from the generator that the caller passes. Parameters with `requires_grad=False` are constants.
A `loss_fn(logits_NP, y_N)` returns the mean loss of its batch as a scalar.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from least_action.data import Pairs
from least_action.models import PairModel

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` independent values and the standard error of that mean."""

    value: float
    standard_error: float
    n: int


def estimate_mean(values_N: Tensor) -> Estimate:
    """The mean of at least two values [N] with its standard error, std / sqrt(N) with N - 1 degrees of freedom."""
    n = len(values_N)
    if n < 2:
        raise ValueError(f"values: {n} given; a standard error needs at least 2")
    values_N = values_N.double()
    return Estimate(values_N.mean().item(), (values_N.std() / n**0.5).item(), n)


def rademacher(shape: tuple[int, ...] | torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of any shape in the dtype and on the device of `like`.

    They are drawn on the generator's own device, so a CPU generator yields the same signs for a model on any device.
    """
    bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def compute_gradient_norm(model: PairModel, pairs: Pairs, loss_fn: LossFn) -> float:
    """Euclidean norm of the gradient of the mean loss over `pairs` by all trainable parameters."""
    parameters = tuple(trainable_parameters(model).values())
    with torch.enable_grad():
        loss = loss_fn(model.forward_pairs(pairs.a_N, pairs.b_N).logits_NP, pairs.y_N)
        # A parameter that the loss doesn't depend on (the state update of the last routed layer) has gradient zero.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients])
    return torch.linalg.vector_norm(norms).item()


def compute_jacobian_norm(model: PairModel, x: Tensor, class_chunk: int = 8, input_chunk: int = 256) -> float:
    """Mean over inputs of ||d logits / d embeddings||_F^2, exact.

    `x` holds N of the data set's inputs; the derivative is by the whole continuous input (for transformers: token
    plus position vectors of all four positions; for MLPs: the one-hot entries, taken as real numbers). Costs P
    backward passes over N inputs, `class_chunk` classes times `input_chunk` inputs at once, which bounds the memory.
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.no_grad(), _differentiable_attention():
        for x_chunk in x.split(input_chunk):
            logits_NP, pull_back = vjp(model.forward_from_embeddings, model.get_embeddings(x_chunk))
            # Inputs don't interact, so row c of every input's Jacobian comes from one pass.
            for rows_CP in torch.eye(logits_NP.shape[-1]).to(logits_NP).split(class_chunk):
                weights_CNP = rows_CP[:, None].expand(-1, len(x_chunk), -1)
                (jacobian_CNE,) = vmap(pull_back)(weights_CNP)
                total += torch.linalg.vector_norm(jacobian_CNE, dtype=torch.float64) ** 2
    return total.item() / len(x)


def compute_jacobian_norm_seed(model: PairModel, x: Tensor, n_probes: int, generator: torch.Generator) -> float:
    """The random-projection estimate of `compute_jacobian_norm`: P times the mean of ||J^T v||^2.

    v is uniform on the unit sphere of the P logits, drawn anew for each input and probe, so E[v v^T] = I / P and the
    estimate is unbiased. Raises ValueError for fewer than 2 probes.
    """
    _check_probes(n_probes)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.no_grad(), _differentiable_attention():
        logits_NP, pull_back = vjp(model.forward_from_embeddings, model.get_embeddings(x))
        for _ in range(n_probes):
            v_NP = torch.randn(logits_NP.shape, generator=generator, device=generator.device).to(logits_NP)
            (projected_NE,) = pull_back(nn.functional.normalize(v_NP, dim=-1))
            total += torch.linalg.vector_norm(projected_NE, dtype=torch.float64) ** 2
    return logits_NP.shape[-1] * total.item() / (n_probes * len(x))


def compute_hessian_trace(model: PairModel, x: Tensor, n_probes: int, generator: torch.Generator) -> Estimate:
    """Mean over inputs of the trace of the Hessian of the largest logit by the embeddings.

    Hutchinson's estimator with Rademacher probes, one sign per entry of every input. Each input's class is its argmax
    at the given point and is held fixed. The standard error is that of the probes: it says nothing about other
    inputs than `x`. Raises ValueError for fewer than 2 probes.
    """
    _check_probes(n_probes)
    with torch.no_grad(), _differentiable_attention():
        embeddings = model.get_embeddings(x)
        top_N1 = model.forward_from_embeddings(embeddings).argmax(dim=-1, keepdim=True)

        def top_logits(point: Tensor) -> Tensor:
            return model.forward_from_embeddings(point).gather(-1, top_N1).sum()

        values = []
        for _ in range(n_probes):
            v = rademacher(embeddings.shape, embeddings, generator)
            _, product = jvp(grad(top_logits), (embeddings,), (v,))
            values.append((v * product).sum(dtype=torch.float64) / len(x))
    return estimate_mean(torch.stack(values))


def compute_weight_hessian_trace(
    model: PairModel, pairs: Pairs, loss_fn: LossFn, n_probes: int, generator: torch.Generator
) -> Estimate:
    """Trace of the Hessian of the mean loss over `pairs` by all trainable parameters.

    Hutchinson's estimator with Rademacher probes, whose variance is 2 (||H||_F^2 - sum of H_ii^2) per probe; on the
    exact loss of all `pairs` in one batch, by curvlinops' Hessian-vector products. The trace falls as cross entropy
    saturates, whatever the weights do, so read it beside the loss (trace / loss is the caller's to form).
    Raises ValueError for fewer than 2 probes.
    """
    _check_probes(n_probes)
    with warnings.catch_warnings():
        # A dependency of curvlinops still uses torch.jit.script at import.
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        # Imported here because it takes seconds, which programs without this metric shouldn't pay.
        from curvlinops import HessianLinearOperator

    parameters = list(trainable_parameters(model).values())
    pairs_N2 = torch.stack([pairs.a_N, pairs.b_N], dim=-1)
    hessian = HessianLinearOperator(
        _OnPairs(model),
        _MeanLoss(loss_fn),
        parameters,
        [(pairs_N2, pairs.y_N)],
        # Both would cost extra passes: several to compare repeated products, one to count the pairs.
        check_deterministic=False,
        num_data=len(pairs),
    )
    values = []
    for _ in range(n_probes):  # one at a time: the operator keeps all activations for every probe it gets at once
        probe = [rademacher(parameter.shape, parameter, generator) for parameter in parameters]
        product = hessian @ probe
        terms = [(v * hv).sum(dtype=torch.float64) for v, hv in zip(probe, product, strict=True)]
        values.append(torch.stack(terms).sum().detach())
    return estimate_mean(torch.stack(values))


def compute_fisher_trace(model: PairModel, pairs: Pairs, loss_fn: LossFn, chunk: int = 64) -> Estimate:
    """Trace of the empirical Fisher matrix: the mean over `pairs` of ||g_i||^2, g_i the gradient of pair i's loss.

    Exact per-pair gradients (vmap of grad), `chunk` pairs at once: memory is `chunk` times a few copies of the
    trainable parameters. The standard error treats the pairs as a random sample; if they are the whole training set,
    the value is exact and the error describes the spread only. Raises ValueError for fewer than 2 pairs.
    """
    plain = _Plain(model)
    parameters = {name: parameter.detach() for name, parameter in trainable_parameters(plain).items()}
    # The plain pass: the restructured one would rebuild its tables of p rows for every single pair.
    x = model.plain_inputs(pairs.a_N, pairs.b_N)

    def loss_of_one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_fn(functional_call(plain, parameters, (x[None],)), y[None])

    gradients_of = vmap(grad(loss_of_one), in_dims=(None, 0, 0))
    values = []
    with torch.no_grad(), _differentiable_attention():
        for x_chunk, y_C in zip(x.split(chunk), pairs.y_N.split(chunk), strict=True):
            gradients = gradients_of(parameters, x_chunk, y_C).values()
            squares = [torch.linalg.vector_norm(g_CW.flatten(1), dim=1) ** 2 for g_CW in gradients]
            values.append(torch.stack(squares).sum(dim=0, dtype=torch.float64))
    return estimate_mean(torch.cat(values))


class _OnPairs(nn.Module):
    """The restructured pass as a function of one tensor, pairs [N, 2] -> logits [N, P]."""

    def __init__(self, model: PairModel):
        super().__init__()
        self.model = model

    def forward(self, pairs_N2: Tensor) -> Tensor:
        return self.model.forward_pairs(pairs_N2[:, 0], pairs_N2[:, 1]).logits_NP


class _Plain(nn.Module):
    """The plain pass, the data set's inputs -> logits [N, P] for routed models too."""

    def __init__(self, model: PairModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_from_embeddings(self.model.get_embeddings(x))


class _MeanLoss(nn.Module):
    """A loss function in the form that curvlinops asks for."""

    reduction = "mean"

    def __init__(self, loss_fn: LossFn):
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, logits_NP: Tensor, y_N: Tensor) -> Tensor:
        return self.loss_fn(logits_NP, y_N)


@contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention from elementary operations: the fused kernels have no second derivative and no vmap rule."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _check_probes(n_probes: int) -> None:
    if n_probes < 2:
        raise ValueError(f"n_probes: {n_probes} given; a standard error needs at least 2")
