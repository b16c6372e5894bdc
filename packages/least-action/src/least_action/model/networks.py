"""The models: an MLP, a routed MLP, and decoder-only transformers with a dense or a routed feed-forward part.

Shapes: N samples, P residues, T = 4 positions, D width, H attention heads, K = D / H, R routing heads,
E input width (2P for the MLPs; D, at each of T positions, for transformers).

Every model has
- `forward(x)`: plain, on the data set's inputs: logits [N, P]; routed models return (logits, routing weights);
- `forward_pairs(a_N, b_N)`: the same function, restructured over the finite input set (distinct_inputs.py);
- `get_embeddings(x)` and `forward_from_embeddings(e)`: the continuous input and all that follows it;
- `get_representation(x)`: what the output layer reads, [N, D].
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from least_action.config import TrainerConfig
from least_action.data import pair_one_hot, pair_tokens
from least_action.model.distinct_inputs import PairIndex, Rows, join
from least_action.model.parameter_roles import GateLinear, HeadsDown, InputLinear, PositionTable, Unembedding
from least_action.model.routing import FeedForward, RoutedFeedForward, RoutedLayer
from studycore.configuration import from_dict
from studycore.streams import generator


class Output(NamedTuple):
    """What one pass yields."""

    logits_NP: Tensor
    """[N, P]"""
    representation_ND: Tensor
    """[N, D], what the output layer reads."""
    routing: tuple[Tensor, ...]
    """Weights [N, R] of each routed layer (transformers: at the = position); empty without routing."""


class PairModel(nn.Module):
    """What all models share."""

    routed = False
    p: int

    def get_embeddings(self, x: Tensor) -> Tensor:
        """The continuous input: [N, 2P] one-hot vectors, or [N, T, D] token plus position vectors."""
        raise NotImplementedError

    def run_from_embeddings(self, embeddings: Tensor) -> Output:
        """The plain pass from the continuous input on."""
        raise NotImplementedError

    def forward_pairs(self, a_N: Tensor, b_N: Tensor) -> Output:
        """The restructured pass: the same outputs as the plain one, from residues [N] and [N]."""
        raise NotImplementedError

    def plain_inputs(self, a_N: Tensor, b_N: Tensor) -> Tensor:
        """The data set's inputs for these pairs."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        output = self.run_from_embeddings(self.get_embeddings(x))
        return (output.logits_NP, output.routing) if self.routed else output.logits_NP

    def forward_from_embeddings(self, embeddings: Tensor) -> Tensor:
        """Logits [N, P] from the continuous input."""
        return self.run_from_embeddings(embeddings).logits_NP

    def get_representation(self, x: Tensor) -> Tensor:
        """[N, D]."""
        return self.run_from_embeddings(self.get_embeddings(x)).representation_ND


class OneHotModel(PairModel):
    """MLPs on [one_hot(a), one_hot(b)]; their first layer on pairs is the sum of two table rows."""

    input: InputLinear

    def plain_inputs(self, a_N: Tensor, b_N: Tensor) -> Tensor:
        return pair_one_hot(a_N, b_N, self.p).to(self.input.weight.dtype)

    def get_embeddings(self, x: Tensor) -> Tensor:
        return x.to(self.input.weight.dtype)

    def input_rows(self, a_N: Tensor, b_N: Tensor) -> Tensor:
        """The first layer's output [N, D]."""
        table_ED = self.input.weight.T
        rows_ND = F.embedding(a_N, table_ED[: self.p]) + F.embedding(b_N, table_ED[self.p :])
        return rows_ND if self.input.bias is None else rows_ND + self.input.bias

    def run_from_first_layer(self, first_ND: Tensor) -> Output:
        raise NotImplementedError

    def run_from_embeddings(self, embeddings: Tensor) -> Output:
        return self.run_from_first_layer(self.input(embeddings))

    def forward_pairs(self, a_N: Tensor, b_N: Tensor) -> Output:
        return self.run_from_first_layer(self.input_rows(a_N, b_N))


class BaselineMLP(OneHotModel):
    """n_layers x [linear, activation] of width hidden_dim, then an output layer."""

    def __init__(self, config: TrainerConfig):
        super().__init__()
        self.p, width = config.p, config.hidden_dim
        self.input = InputLinear(2 * config.p, width, bias=config.mlp_bias)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=config.mlp_bias) for _ in range(config.n_layers - 1))
        self.head = Unembedding(width, config.p, bias=config.mlp_bias)
        self.activation = activation(config.activation)

    def run_from_first_layer(self, first_ND: Tensor) -> Output:
        x_ND = self.activation(first_ND)
        for layer in self.hidden:
            x_ND = self.activation(layer(x_ND))
        return Output(self.head(x_ND), x_ND, ())


class RoutedNetwork(OneHotModel):
    """An MLP whose layers mix parallel heads by per-sample gates (routing.py) on a residual stream.

    `n_heads = 1` is the single-head ablation: the same network with nothing to choose.
    """

    routed = True

    def __init__(self, config: TrainerConfig):
        super().__init__()
        self.p, width = config.p, config.hidden_dim
        self.input = InputLinear(2 * config.p, width)
        self.state_init = nn.Linear(width, width)
        self.layers = nn.ModuleList(RoutedLayer(width, config.n_heads) for _ in range(config.n_layers))
        self.head = Unembedding(width, config.p)

    def run_from_first_layer(self, first_ND: Tensor) -> Output:
        x_ND, state_ND, routing = first_ND, self.state_init(first_ND), []
        for layer in self.layers:
            x_ND, state_ND, weights_NR = layer(x_ND, state_ND)
            routing.append(weights_NR)
        return Output(self.head(x_ND), x_ND, tuple(routing))


class Block(nn.Module):
    """x + attention(norm(x)), then x + ff(norm(x)); on the sphere the norm follows the sum instead."""

    def __init__(self, config: TrainerConfig):
        super().__init__()
        width = config.hidden_dim
        self.n_heads = config.n_heads
        self.on_sphere = config.stream_norm == "sphere"
        self.norm1, self.norm2 = norm(config.stream_norm, width), norm(config.stream_norm, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        if config.model_type == "routed_transformer":
            self.ff: nn.Module = RoutedFeedForward(
                width, 4 * width, config.routing_heads, activation(config.activation), config.freeze_gates
            )
        else:
            self.ff = FeedForward(width, 4 * width, activation(config.activation))

    def split(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, K]."""
        return x.unflatten(-1, (self.n_heads, -1))

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """The residual sum."""
        return F.normalize(x + update, dim=-1) if self.on_sphere else x + update

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        update, weights = self.ff(self.norm2(x))
        return self.add(x, update), weights

    def forward(self, x_NTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Plain pass; returns (x [N, T, D], routing weights [N, R] at the last position or None)."""
        h_NTD = self.norm1(x_NTD)
        q, k, v = (self.split(w(h_NTD)).transpose(1, 2) for w in (self.query, self.key, self.value))
        mixed_NHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_NTD = self.add(x_NTD, self.out(mixed_NHTK.transpose(1, 2).flatten(-2)))
        x_NTD, weights_NTR = self.feed_forward(x_NTD)
        return x_NTD, None if weights_NTR is None else weights_NTR[:, -1]

    def forward_rows(self, streams: list[Rows], pairs: PairIndex, last: bool) -> tuple[list[Rows], Tensor | None]:
        """The same on one `Rows` per position; the last block only computes the = position."""
        normed = [Rows(self.norm1(stream.x), stream.kind) for stream in streams]
        keys = [Rows(self.split(self.key(h.x)), h.kind) for h in normed]
        values = [Rows(self.split(self.value(h.x)), h.kind) for h in normed]
        new_streams, weights = [], None
        for t in range(len(streams) - 1 if last else 0, len(streams)):
            query = Rows(self.split(self.query(normed[t].x)), normed[t].kind)
            kind = join(*(stream.kind for stream in streams[: t + 1]))
            scores = [self.score(query, key, kind, pairs) for key in keys[: t + 1]]
            attention = torch.stack(torch.broadcast_tensors(*scores), dim=-1).softmax(dim=-1)  # [rows, H, t + 1]
            mixed = attention[..., 0, None] * pairs.lift(values[0], kind)
            for s in range(1, t + 1):
                mixed = mixed + attention[..., s, None] * pairs.lift(values[s], kind)
            x, weights = self.feed_forward(self.add(pairs.lift(streams[t], kind), self.out(mixed.flatten(-2))))
            new_streams.append(Rows(x, kind))
        return new_streams, weights

    def score(self, query: Rows, key: Rows, kind: str, pairs: PairIndex) -> Tensor:
        """q . k / sqrt(K) for the rows of `kind` (or one row), computed on the fewest rows: [rows, H]."""
        both = join(query.kind, key.kind)
        product = (pairs.lift(query, both) * pairs.lift(key, both)).sum(dim=-1)
        return pairs.lift(Rows(product / math.sqrt(key.x.shape[-1]), both), kind)


class GrokTransformer(PairModel):
    """Decoder-only transformer on [a, op, b, =] that reads the class off the last position.

    Pre-norm blocks with causal mask, bias-free attention projections, feed-forward width 4 D. `stream_norm`:
    "layernorm", "rmsnorm", "none" (Nanda et al. 2023, arXiv:2301.05217), or "sphere": the residual stream has unit
    length after every sum and the logits are `sphere_temperature` times the cosine with the unembedding's rows
    (Yildirim 2026, arXiv:2603.05228). `tie_embeddings` reads classes with the token table's first p rows.
    """

    def __init__(self, config: TrainerConfig):
        super().__init__()
        self.p, width = config.p, config.hidden_dim
        self.routed = config.model_type == "routed_transformer"
        self.on_sphere = config.stream_norm == "sphere"
        self.temperature = config.sphere_temperature
        self.token = nn.Embedding(config.p + 2, width)
        self.position = PositionTable(4, width)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config) for _ in range(config.n_layers))  # type: ignore[assignment]
        self.final_norm = norm(config.stream_norm, width)
        self.head = None if config.tie_embeddings else Unembedding(width, config.p, bias=not self.on_sphere)

    def plain_inputs(self, a_N: Tensor, b_N: Tensor) -> Tensor:
        return pair_tokens(a_N, b_N, self.p)

    def get_embeddings(self, x: Tensor) -> Tensor:
        return self.token(x) + self.position.weight

    def enter(self, embeddings: Tensor) -> Tensor:
        """The residual stream's start."""
        return F.normalize(embeddings, dim=-1) if self.on_sphere else embeddings

    def read_out(self, x_ND: Tensor, routing: list[Tensor]) -> Output:
        representation_ND = self.final_norm(x_ND)
        weight_PD = self.token.weight[: self.p] if self.head is None else self.head.weight
        bias_P = None if self.head is None else self.head.bias
        if self.on_sphere:
            weight_PD = self.temperature * F.normalize(weight_PD, dim=-1)
        return Output(F.linear(representation_ND, weight_PD, bias_P), representation_ND, tuple(routing))

    def run_from_embeddings(self, embeddings: Tensor) -> Output:
        x_NTD, routing = self.enter(embeddings), []
        for block in self.blocks:
            x_NTD, weights_NR = block(x_NTD)
            if weights_NR is not None:
                routing.append(weights_NR)
        return self.read_out(x_NTD[:, -1], routing)

    def forward_pairs(self, a_N: Tensor, b_N: Tensor) -> Output:
        pairs, token, position = PairIndex(a_N, b_N), self.token.weight, self.position.weight
        streams = [
            Rows(self.enter(token[: self.p] + position[0]), "a"),
            Rows(self.enter(token[self.p, None] + position[1]), "const"),
            Rows(self.enter(token[: self.p] + position[2]), "b"),
            Rows(self.enter(token[self.p + 1, None] + position[3]), "const"),
        ]
        routing = []
        for i, block in enumerate(self.blocks):
            streams, weights_NR = block.forward_rows(streams, pairs, last=i == len(self.blocks) - 1)
            if weights_NR is not None:
                routing.append(weights_NR)
        return self.read_out(streams[-1].x, routing)


class PairForward(nn.Module):
    """The model as the training step calls it: from residues, by the configured pass."""

    def __init__(self, model: PairModel, restructured: bool):
        super().__init__()
        self.model, self.restructured = model, restructured

    def forward(self, a_N: Tensor, b_N: Tensor) -> Output:
        if self.restructured:
            return self.model.forward_pairs(a_N, b_N)
        return self.model.run_from_embeddings(self.model.get_embeddings(self.model.plain_inputs(a_N, b_N)))


def activation(name: str) -> nn.Module:
    return {"gelu": nn.GELU, "relu": nn.ReLU}[name]()


def norm(name: str, width: int) -> nn.Module:
    """The module before each sublayer; "none" and "sphere" have none there."""
    return {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}[name](width) if name.endswith("norm") else nn.Identity()


MODELS: dict[str, type[PairModel]] = {
    "baseline": BaselineMLP,
    "routed": RoutedNetwork,
    "transformer": GrokTransformer,
    "routed_transformer": GrokTransformer,
}


def unstarted(config: TrainerConfig) -> PairModel:
    """The configured model in the configured dtype, with weights that mean nothing."""
    return MODELS[config.model_type](config).to(getattr(torch, config.dtype))


def create_model(config: TrainerConfig) -> PairModel:
    """The configured model in the configured dtype, initialised from `config.seed` alone.

    Each parameter has a random stream of its own, named after it: models that share a parameter's name, shape and
    rule start with the same values. Transformers: N(0, init_std) for tables and matrices, zero biases, zero gates.
    MLPs: PyTorch's default for linear layers.
    """
    model = MODELS[config.model_type](config)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            stream = generator(config.seed, "init", f"{prefix}.{name}")
            with torch.no_grad():
                _init(module, name, parameter, stream, None if isinstance(model, OneHotModel) else config.init_std)
    return model.to(getattr(torch, config.dtype))


def _init(module: nn.Module, name: str, parameter: Tensor, stream: torch.Generator, std: float | None) -> None:
    start = module.start if isinstance(module, GateLinear) else "default"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        parameter.fill_(0.0 if name == "bias" else 1.0)
    elif start == "zero" or (start == "small" and name == "bias") or (std is not None and parameter.dim() == 1):
        parameter.zero_()
    elif std is not None:
        parameter.normal_(0.0, std, generator=stream)
    elif start == "small":
        nn.init.xavier_normal_(parameter, 0.1, generator=stream)
    else:
        # PyTorch's default for a linear layer; the heads' stacked biases go with their hidden width, 4 D.
        hidden = 4 * parameter.shape[-1]
        fan_in = module.fan_in if isinstance(module, HeadsDown) else getattr(module, "in_features", hidden)
        bound = 1 / math.sqrt(fan_in)
        parameter.uniform_(-bound, bound, generator=stream)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trained_values(model: nn.Module) -> int:
    """Numbers that training changes; frozen parameters are left out."""
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


def total_norm(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Euclidean norm of all tensors together, a scalar, computed in `dtype` or else in their own; of none it is 0."""
    squares = [tensor.detach().to(dtype or tensor.dtype).pow(2).sum() for tensor in tensors]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=dtype)


# ------------------------------------------------------------------------------------------------------- checkpoints
PROBE_PAIRS = 16


def build_model(values: Mapping[str, Any]) -> PairModel:
    """The model of a checkpoint's configuration."""
    return create_model(from_dict(TrainerConfig, values, "the checkpoint's config.json"))


def probe_inputs(p: int) -> dict[str, Tensor]:
    """Fixed pairs, spread over the residues; b is never 0, so that they serve every operation."""
    k_N = torch.arange(PROBE_PAIRS)
    return {"input_a": k_N * 7 % p, "input_b": k_N * 11 % (p - 1) + 1}


def replay_probe(model: PairModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits of the probe's pairs."""
    device = next(model.parameters()).device
    return {"output_logits": model.forward_pairs(inputs["input_a"].to(device), inputs["input_b"].to(device)).logits_NP}
