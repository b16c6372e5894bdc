"""Gradients and curvature of the loss and of the function a network computes.

Shapes: N samples, P residues (classes), E the shape of one continuous input (2P for MLPs, T x D for transformers),
C pairs handled at once, W the values of one parameter.

No function here changes the model: gradients are returned, never left in `.grad`, the training mode stays as it is,
and random numbers come from the generator that the caller passes. Parameters with `requires_grad=False` are constants.
A `loss_fn(logits_NP, y_N)` returns the mean loss of its batch as a scalar.

Attention is made of elementary operations where a second derivative or one gradient per sample is asked for: the
fused kernels have neither.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from least_action.data import Pairs
from least_action.model import PairModel, total_norm, trainable_parameters

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
    return Estimate(float(values_N.mean()), float(values_N.std()) / n**0.5, n)


def rademacher(shape: tuple[int, ...] | torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of any shape in the dtype and on the device of `like`.

    They are drawn on the generator's own device, so a CPU generator yields the same signs for a model on any device.
    """
    bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


def compute_gradient_norm(model: PairModel, pairs: Pairs, loss_fn: LossFn) -> float:
    """Euclidean norm of the gradient of the mean loss over `pairs` by all trainable parameters."""
    parameters = tuple(trainable_parameters(model).values())
    with torch.enable_grad():
        loss = loss_fn(model.forward_pairs(pairs.a_N, pairs.b_N).logits_NP, pairs.y_N)
        # A parameter that the loss doesn't depend on (the state update of the last routed layer) has gradient zero.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return float(total_norm(gradients, torch.float64))


def compute_jacobian_norm(model: PairModel, x: Tensor, chunk: int = 256) -> float:
    """Mean over inputs of ||d logits / d embeddings||_F^2, exact.

    `x` holds N of the data set's inputs; the derivative is by the whole continuous input (for transformers: token
    plus position vectors of all four positions; for MLPs: the one-hot entries, taken as real numbers). Costs P
    backward passes over the N inputs; `chunk` inputs at once bound the memory.
    """
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.enable_grad():
        for x_chunk in torch.split(x, chunk):
            embeddings, logits_NP = _run_from_leaf(model, x_chunk)
            for logit_N in logits_NP.unbind(dim=-1):
                # Inputs don't interact, so one pass yields this class's row of every input's Jacobian.
                (row_NE,) = torch.autograd.grad(logit_N.sum(), embeddings, retain_graph=True)
                total += torch.linalg.vector_norm(row_NE, dtype=torch.float64) ** 2
    return float(total) / len(x)


def compute_jacobian_norm_original(model: PairModel, x: Tensor, n_probes: int, generator: torch.Generator) -> float:
    """The random-projection estimate of `compute_jacobian_norm`: P times the mean of ||J^T v||^2.

    v is uniform on the unit sphere of the P logits, drawn anew for each input and probe, so E[v v^T] = I / P and the
    estimate is unbiased. Raises ValueError for fewer than 2 probes.
    """
    _check_probes(n_probes)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.enable_grad():
        embeddings, logits_NP = _run_from_leaf(model, x)
        for _ in range(n_probes):
            v_NP = torch.randn(logits_NP.shape, generator=generator, device=generator.device).to(logits_NP)
            projection = (logits_NP * nn.functional.normalize(v_NP, dim=-1)).sum()
            (projected_NE,) = torch.autograd.grad(projection, embeddings, retain_graph=True)
            total += torch.linalg.vector_norm(projected_NE, dtype=torch.float64) ** 2
    return logits_NP.shape[-1] * float(total) / (n_probes * len(x))


def compute_hessian_trace(model: PairModel, x: Tensor, n_probes: int, generator: torch.Generator) -> Estimate:
    """Mean over inputs of the trace of the Hessian of the largest logit by the embeddings.

    Hutchinson's estimator with Rademacher probes, one sign per entry of every input. Each input's class is its argmax
    at the given point and is held fixed. The standard error is that of the probes: it says nothing about other
    inputs than `x`. Raises ValueError for fewer than 2 probes.
    """
    _check_probes(n_probes)
    values = []
    with torch.enable_grad():
        embeddings, logits_NP = _run_from_leaf(model, x)
        (gradient,) = torch.autograd.grad(logits_NP.max(dim=-1).values.sum(), embeddings, create_graph=True)
        for _ in range(n_probes):
            v = rademacher(embeddings.shape, embeddings, generator)
            (product,) = torch.autograd.grad((gradient * v).sum(), embeddings, retain_graph=True)
            values.append((v * product.detach()).sum(dtype=torch.float64) / len(x))
    return estimate_mean(torch.stack(values))


def _run_from_leaf(model: PairModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """The continuous inputs as the start of a graph, and the logits [N, P] at its end. Needs gradients enabled."""
    with sdpa_kernel(SDPBackend.MATH):
        embeddings = model.get_embeddings(x).detach().requires_grad_()
        return embeddings, model.forward_from_embeddings(embeddings)


def compute_weight_hessian_trace(
    model: PairModel, pairs: Pairs, loss_fn: LossFn, n_probes: int, generator: torch.Generator
) -> Estimate:
    """Trace of the Hessian of the mean loss over `pairs` by all trainable parameters.

    Hutchinson's estimator with Rademacher probes, whose variance is 2 (||H||_F^2 - sum of H_ii^2) per probe, on the
    exact loss of all `pairs` in one batch. The trace falls as cross entropy saturates, whatever the weights do, so
    read it beside the loss (trace / loss is the caller's to form). Raises ValueError for fewer than 2 probes.

    The products come from a second backward pass and not from curvlinops' HessianLinearOperator: version 3.0.1 takes
    gradients by torch.func.jacrev, whose vmap rule for the backward pass of layer_norm is wrong once the norm's
    weight and input are both differentiated (torch 2.13), so its products are wrong for every model with LayerNorm.
    The tests compare with it where it is right.
    """
    _check_probes(n_probes)
    parameters = tuple(trainable_parameters(model).values())
    values = []
    with torch.enable_grad():
        loss = loss_fn(model.forward_pairs(pairs.a_N, pairs.b_N).logits_NP, pairs.y_N)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        for _ in range(n_probes):
            probe = [rademacher(parameter.shape, parameter, generator) for parameter in parameters]
            slope = torch.stack([(g * v).sum() for g, v in zip(gradients, probe, strict=True)]).sum()
            product = torch.autograd.grad(
                slope, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            terms = [(v * hv).sum(dtype=torch.float64) for v, hv in zip(probe, product, strict=True)]
            values.append(torch.stack(terms).sum())
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
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for x_chunk, y_C in zip(torch.split(x, chunk), torch.split(pairs.y_N, chunk), strict=True):
            gradients = gradients_of(parameters, x_chunk, y_C).values()
            squares = [torch.linalg.vector_norm(g_CW.flatten(1), dim=1) ** 2 for g_CW in gradients]
            values.append(torch.stack(squares).sum(dim=0, dtype=torch.float64))
    return estimate_mean(torch.cat(values))


class _Plain(nn.Module):
    """The plain pass, the data set's inputs -> logits [N, P] for routed models too."""

    def __init__(self, model: PairModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_from_embeddings(self.model.get_embeddings(x))


def _check_probes(n_probes: int) -> None:
    if n_probes < 2:
        raise ValueError(f"n_probes: {n_probes} given; a standard error needs at least 2")
