"""Routing: per-sample gates that weigh parallel heads.

Shapes: N samples (any leading dimensions), D width, R routing heads, F hidden width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from least_action.model.parameter_roles import GateLinear, HeadsDown


class RoutingGate(nn.Module):
    """softmax(W_gate GELU(W_state s + W_res x)): weights [N, R] from the state s and the residual x, both [N, D].

    `W_gate` starts at Xavier gain 0.1 with bias 0, so that routing starts near uniform.
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.state_proj = GateLinear(width, width)
        self.input_proj = GateLinear(width, width)
        self.gate = GateLinear(width, n_heads, start="small")

    def forward(self, state_ND: Tensor, x_ND: Tensor) -> Tensor:
        return self.gate(F.gelu(self.state_proj(state_ND) + self.input_proj(x_ND))).softmax(dim=-1)


class RoutedLayer(nn.Module):
    """LayerNorm(x + sum_r w_r head_r(x)) with R parallel heads D -> 4D -> D (GELU), weighted per sample.

    Returns (output [N, D], state [N, D], weights [N, R]); the new state is a linear map of [state, output].
    All heads are evaluated as two matrix products: the weights scale each head's hidden units.
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.gate = RoutingGate(width, n_heads)
        self.up = nn.Linear(width, 4 * width * n_heads)
        self.down = HeadsDown(n_heads, 4 * width, width)
        self.down_bias_RD = nn.Parameter(torch.zeros(n_heads, width))
        self.norm = nn.LayerNorm(width)
        self.state_update = GateLinear(2 * width, width)

    def forward(self, x_ND: Tensor, state_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights_NR = self.gate(state_ND, x_ND)
        hidden_NRF = F.gelu(self.up(x_ND)).unflatten(-1, (self.n_heads, -1))
        mixed_ND = self.down((hidden_NRF * weights_NR[..., None]).flatten(-2)) + weights_NR @ self.down_bias_RD
        output_ND = self.norm(x_ND + mixed_ND)
        return output_ND, self.state_update(torch.cat([state_ND, output_ND], dim=-1)), weights_NR


class RoutedFeedForward(nn.Module):
    """A transformer's feed-forward part whose hidden units form R heads, each scaled by R times its gate weight.

    With uniform weights this is the dense feed-forward part exactly; the gate starts at zero, so a routed
    transformer starts as the dense one of the same seed, and differs from it by the gate's (D + 1) R parameters
    only. `freeze` keeps the gate uniform for good: the matched control.
    """

    def __init__(self, width: int, hidden: int, n_heads: int, activation: nn.Module, freeze: bool = False):
        super().__init__()
        if hidden % n_heads:
            raise ValueError(f"routing_heads: {n_heads} does not divide the feed-forward width {hidden}")
        self.n_heads, self.freeze = n_heads, freeze
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation
        self.gate = GateLinear(width, n_heads, start="zero").requires_grad_(not freeze)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """(output [N, D], weights [N, R])."""
        weights_NR = self.gate(x_ND).softmax(dim=-1)
        hidden_NRF = self.activation(self.up(x_ND)).unflatten(-1, (self.n_heads, -1))
        gated_NF = (hidden_NRF * (self.n_heads * weights_NR)[..., None]).flatten(-2)
        return self.down(gated_NF), weights_NR


class FeedForward(nn.Module):
    """The dense feed-forward part; returns (output, None), so that blocks treat both kinds alike."""

    def __init__(self, width: int, hidden: int, activation: nn.Module):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x_ND: Tensor) -> tuple[Tensor, None]:
        return self.down(self.activation(self.up(x_ND))), None
