"""The adapter: from the code of a token to its embedding, each position by itself, so that nothing leaks between them.

Shapes: N rows (any leading dimensions), K dimensions of a code, H hidden, D of an embedding.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentwire_adapter.model.compressor import EmbeddingCompressor
from latentwire_adapter.model.saved import Saved
from studycore.models import evaluating


class Adapter(Saved):
    """y = scale * norm(gate(z) * (mlp(n(z)) + skip(n(z))) + shift(z)), n a layer norm, gate a sigmoid.

    The original study's: two hidden layers of H = hidden_mult * K with GELU, a linear skip, a feature-wise gate and shift
    from the code itself (Perez et al. 2018), a layer norm, a scalar; 19,952,641 parameters from 512 to 4,096 dimensions.
    `form` "original" is exactly that: the last layer norm gives each row the same norm, which the rows of an embedding
    table don't have. "linear_start" has the same parameters and leaves out that norm's division (gain and bias stay);
    `start_at_inverse` makes it begin as a compressor's linear inverse.
    """

    code_scale: Tensor

    def __init__(
        self,
        d_z: int = 512,
        d_model: int = 4096,
        hidden_mult: int = 4,
        dropout: float = 0.1,
        form: Literal["linear_start", "original"] = "linear_start",
    ):
        super().__init__()
        self.arguments: dict[str, Any] = {
            "d_z": d_z, "d_model": d_model, "hidden_mult": hidden_mult, "dropout": dropout, "form": form,
        }  # fmt: skip
        self.form, hidden = form, d_z * hidden_mult
        self.input_norm = nn.LayerNorm(d_z)
        self.hidden1, self.hidden2 = nn.Linear(d_z, hidden), nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, d_model)
        self.skip, self.gate, self.shift = (nn.Linear(d_z, d_model) for _ in range(3))
        self.output_norm = nn.LayerNorm(d_model)
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(dropout)
        # Codes and embeddings are small numbers; inside they are of order one.
        self.register_buffer("code_scale", torch.ones(()))
        for layer in (self.hidden1, self.hidden2, self.output, self.skip, self.gate, self.shift):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z_NK: Tensor) -> Tensor:
        """Embeddings y_ND of codes z_NK."""
        z_NK = z_NK * self.code_scale
        n_NK = self.input_norm(z_NK)
        gelu = nn.functional.gelu
        hidden_NH = self.dropout(gelu(self.hidden2(gelu(self.hidden1(n_NK)))))
        y_ND = torch.sigmoid(self.gate(z_NK)) * (self.output(hidden_NH) + self.skip(n_NK)) + self.shift(z_NK)
        if self.form == "original":
            return self.scale * self.output_norm(y_ND)
        return self.scale * (self.output_norm.weight * y_ND + self.output_norm.bias)

    @torch.no_grad()
    def start_at_inverse(self, compressor: EmbeddingCompressor, code_rms: float, row_rms: float) -> None:
        """Sets the scales of codes and embeddings, and for "linear_start" the shift to the compressor's linear inverse.

        Its other paths begin at zero.
        """
        self.code_scale.fill_(1 / code_rms)
        self.scale.fill_(row_rms)
        if self.form == "linear_start":
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.skip.weight)
            self.shift.weight.copy_(compressor.inverse.T * (code_rms / row_rms))
            self.shift.bias.copy_(compressor.mean / row_rms)


def build_adapter(values: Mapping[str, Any]) -> Adapter:
    """An untrained adapter of a stored configuration."""
    return Adapter(**values)


def probe_inputs(k: int) -> dict[str, Tensor]:
    """A fixed code, on whose row a checkpoint is checked when it is loaded."""
    return {"input_code": torch.linspace(-1, 1, k)[None]}


def replay_probe(adapter: Adapter, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row of the fixed code."""
    with evaluating(adapter) as device:
        return {"output_row": adapter(inputs["input_code"].to(device))}
