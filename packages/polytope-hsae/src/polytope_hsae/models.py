"""Sparse autoencoders: hierarchical (Muchane, Richardson, Park, Veitch, arXiv:2506.01197) and flat.

Hierarchical: the top k parents are active with their magnitudes a. An active parent sends the input into its own subspace of
a few dimensions, y = W_down x, where the best of its children is active with magnitude c (top-1; the child's code is not
multiplied by the parent's), and x^ = b + sum_j a_j D_j + sum_j c_j W_up_j^T D_low_j. So a child adds to its parent what a child is
beside it. The cost of a step barely depends on the number of children.

Flat: TopK (Gao et al. 2024), BatchTopK (Bussmann et al. 2024) and Matryoshka BatchTopK (Bussmann et al., ICML 2025).

Shapes: B batch, D width, M parents, K active, S dimensions of a subspace, L children of each parent, F latents in all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytope_hsae.sparse import Order, dots, sparse_decode, sparse_encode, sums
from studycore.files import write_json, write_tensors
from studycore.models import load_module, save_module

CHUNK = 8192
FILES = ("cfg.json", "sae.safetensors")
"""Of a saved model: what it is built from, and its state."""
ARCHITECTURE = "polytope-hsae"
"""In SAELens' registry, where `polytope_hsae.saelens.register` puts it."""


@dataclass(frozen=True)
class SAEConfig:
    """Everything a model is built from."""

    kind: Literal["hierarchical", "topk", "batchtopk", "matryoshka"]
    d_in: int
    m_top: int
    """Parents, or latents of a flat one."""
    topk_parent: int
    subspace_dim: int = 4
    m_low: int = 16
    topk_child: int = 1
    input_scale: float = 1.0
    """Inputs are multiplied by it: activations come to a mean squared distance from their mean of 1."""
    inner_widths: tuple[int, ...] = ()
    """Matryoshka: widths of the nested dictionaries, without the whole."""

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> "SAEConfig":
        """Of its fields as JSON has them. KeyError or TypeError where one lacks or is unknown."""
        return cls(**{**values, "inner_widths": tuple(values["inner_widths"])})

    @property
    def features(self) -> int:
        """Latents in all."""
        return self.m_top * (1 + self.m_low) if self.kind == "hierarchical" else self.m_top


@dataclass
class Codes:
    """What is active: parents (or latents) and, in a hierarchical model, a child of each.

    `index` and `value` are [B, K]; `child` and `child_value` [B, K * topk_child], children as parent * L + child.
    """

    index: Tensor
    value: Tensor
    child: Tensor | None = None
    child_value: Tensor | None = None


@dataclass
class Output:
    """A training's forward pass, of scaled inputs."""

    x_hat: Tensor
    codes: Codes
    x_hat_top: Tensor | None = None
    """From the parents alone."""
    prefixes: tuple[Tensor, ...] = ()
    """Matryoshka: reconstructions of the inner dictionaries."""
    aux: tuple[Tensor, ...] = ()
    """Reconstructions of the error by dead latents, of each level that has some."""


class SparseAutoencoder(nn.Module):
    """What both kinds share: encoder, decoder of unit rows, biases, counters of dead latents, files."""

    tokens_since_fired: Tensor
    threshold: Tensor

    def __init__(self, config: SAEConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        raw_MD = torch.randn(config.m_top, config.d_in, generator=generator)
        raw_MD = raw_MD / raw_MD.norm(dim=1, keepdim=True)
        self.decoder = nn.Parameter(raw_MD)
        self.encoder = nn.Parameter(raw_MD.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(config.m_top))
        self.bias = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("tokens_since_fired", torch.zeros(config.m_top, dtype=torch.long))
        self.register_buffer("threshold", torch.zeros(()))

    def unit_matrices(self) -> list[nn.Parameter]:
        """Parameters whose last dimension is kept at unit length."""
        return [self.decoder]

    def decoders(self) -> list[nn.Parameter]:
        """What has the decoders' learning rate, and what an arm with a frozen decoder freezes."""
        return [self.decoder]

    # -------------------------------------------------------------------------------------------------- the training step
    @torch.no_grad()
    def normalise(self, frozen: Sequence[nn.Parameter] = ()) -> None:
        """Unit rows, but for what stays as it is."""
        still = {id(matrix) for matrix in frozen}
        for matrix in [matrix for matrix in self.unit_matrices() if id(matrix) not in still]:
            matrix.div_(matrix.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Takes out what would change a row's length."""
        for matrix in self.unit_matrices():
            if matrix.grad is not None:
                matrix.grad -= (matrix.grad * matrix).sum(-1, keepdim=True) * matrix

    def pre_activations(self, x_BD: Tensor) -> Tensor:
        """[B, M], dense: the one dense product of a step."""
        return torch.addmm(self.encoder_bias, x_BD - self.bias, self.encoder.T)

    def _reconstruct_error(self, pre_BM: Tensor, x_BD: Tensor, dead_M: Tensor) -> tuple[Tensor, ...]:
        """By the best dead latents (Gao et al. 2024, AuxK, with up to as many as are active)."""
        count = min(int(dead_M.sum()), self.config.topk_parent)
        if count == 0:
            return ()
        index_BK = pre_BM.masked_fill(~dead_M, -torch.inf).topk(count, dim=1, sorted=False).indices
        order = Order(index_BK, self.config.m_top)
        value_BK = self._values(x_BD, order)
        return (sparse_decode(value_BK, self.decoder, order),)

    def _values(self, x_BD: Tensor, order: Order) -> Tensor:
        """[B, K] ReLU of the selected pre-activations. The encoder does not push on the bias of the decoder."""
        centred_BD = x_BD - self.bias.detach()
        return torch.relu(sparse_encode(centred_BD, self.encoder, order) + _gather(self.encoder_bias, order.index_BK))

    # --------------------------------------------------------------------------------------------------------------- use
    def encode(self, x_BD: Tensor) -> Codes:
        """Codes [B, K] of activations [B, D] as they are."""
        raise NotImplementedError

    def decode(self, codes: Codes) -> Tensor:
        """[B, D] activations, as they are, of codes."""
        raise NotImplementedError

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, D] reconstruction of activations as they are, in chunks."""
        return torch.cat([self.decode(self.encode(part)) for part in x_BD.split(CHUNK)])

    def save_pretrained(self, folder: str | Path) -> None:
        """cfg.json and sae.safetensors."""
        save_module(self, folder, asdict(self.config), *FILES)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Any:
        """What `save_pretrained` wrote. UserError when it does not fit."""
        return load_module(
            folder, lambda v: build_sae(SAEConfig.from_stored(v)), "a saved sparse autoencoder", *FILES
        ).eval()


class FlatSAE(SparseAutoencoder):
    """TopK, BatchTopK or Matryoshka."""

    def select(self, pre_BM: Tensor) -> Tensor:
        """[B, K] indices. BatchTopK takes the batch's K * B largest; each sample's width is that of the largest."""
        if self.config.kind == "topk":
            return pre_BM.topk(self.config.topk_parent, dim=1, sorted=False).indices
        wide = min(4 * self.config.topk_parent, self.config.m_top)
        return pre_BM.topk(wide, dim=1, sorted=False).indices

    def train_forward(self, x_BD: Tensor, dead: tuple[Tensor, ...]) -> Output:
        """Of scaled inputs; `dead` says which latents are."""
        config = self.config
        with torch.no_grad():
            pre_BM = self.pre_activations(x_BD)
            order = Order(self.select(pre_BM), config.m_top)
        value_BK = self._values(x_BD, order)
        if config.kind != "topk":
            with torch.no_grad():
                # The batch's largest codes; a sample has up to four times the mean.
                kept = value_BK.flatten().topk(config.topk_parent * len(x_BD), sorted=False).values.min()
                if self.training:
                    self.threshold += 0.01 * (kept - self.threshold) if float(self.threshold) > 0 else kept
            value_BK = value_BK * (value_BK >= kept)
        codes = Codes(order.index_BK, value_BK)
        x_hat_BD = self.bias + sparse_decode(value_BK, self.decoder, order)
        prefixes = tuple(
            self.bias + sparse_decode(value_BK * (order.index_BK < width), self.decoder, order)
            for width in config.inner_widths
        )
        return Output(x_hat_BD, codes, None, prefixes, self._reconstruct_error(pre_BM, x_BD, dead[0]))

    @torch.no_grad()
    def encode(self, x_BD: Tensor) -> Codes:
        x_BD = x_BD * self.config.input_scale
        index_BK = self.select(self.pre_activations(x_BD))
        value_BK = torch.relu(dots(x_BD - self.bias, self.encoder, index_BK) + self.encoder_bias[index_BK])
        if self.config.kind != "topk":
            value_BK = value_BK * (value_BK >= self.threshold)
        return Codes(index_BK, value_BK)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        return (self.bias + sums(codes.value, self.decoder, codes.index)) / self.config.input_scale

    def counters(self) -> tuple[Tensor, ...]:
        return (self.tokens_since_fired,)


class HierarchicalSAE(SparseAutoencoder):
    """Parents with children in subspaces of their own."""

    children_since_fired: Tensor

    def __init__(self, config: SAEConfig, generator: torch.Generator | None = None):
        super().__init__(config, generator)
        m, s, low, d = config.m_top, config.subspace_dim, config.m_low, config.d_in
        up_MSD = torch.randn(m, s, d, generator=generator) / d**0.5
        atoms_MLS = torch.randn(m, low, s, generator=generator)
        atoms_MLS = atoms_MLS / atoms_MLS.norm(dim=-1, keepdim=True)
        self.up = nn.Parameter(up_MSD)
        self.down = nn.Parameter(up_MSD.clone())
        self.low_decoder = nn.Parameter(atoms_MLS)
        self.low_encoder = nn.Parameter(atoms_MLS.clone())
        self.low_bias = nn.Parameter(torch.zeros(m, low))
        self.register_buffer("children_since_fired", torch.zeros(m * low, dtype=torch.long))

    def unit_matrices(self) -> list[nn.Parameter]:
        return [self.decoder, self.low_decoder]

    def decoders(self) -> list[nn.Parameter]:
        return [self.decoder, self.low_decoder, self.up, self.down]

    def child_atoms(self) -> Tensor:
        """[M, L, D] what each child adds to a reconstruction."""
        return self.low_decoder @ self.up

    @torch.no_grad()
    def _choose(self, y_BKS: Tensor, index_BK: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
        """[B, K, count] best children of each active parent, some pairs at a time."""
        size = self.config.subspace_dim + 1
        bias_ML: Tensor = self.low_bias
        if allowed is not None:
            bias_ML = bias_ML.masked_fill(~allowed.view_as(bias_ML), -torch.inf)
        # A parent's rows: what each coordinate gives to all of its children, then their biases. A weighted sum of rows is
        # their pre-activations, and no parent's whole encoder is copied for each sample.
        rows = torch.cat([self.low_encoder.mT, bias_ML[:, None]], 1).flatten(0, 1)
        steps = torch.arange(size, device=rows.device)
        best_children = []
        for y_nS, index_n in zip(y_BKS.flatten(0, 1).split(CHUNK), index_BK.flatten().split(CHUNK), strict=True):
            weight_nS = torch.cat([y_nS, torch.ones_like(y_nS[:, :1])], 1)
            pre_nL = sums(weight_nS, rows, index_n[:, None] * size + steps)
            best_children.append(
                pre_nL.argmax(1, keepdim=True) if count == 1 else pre_nL.topk(count, dim=1, sorted=False).indices
            )
        return torch.cat(best_children).view(*index_BK.shape, count)

    def _children(
        self, y_BKS: Tensor, index_BK: Tensor, on_BK: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(rows [B, K, C], values [B, K, C], coordinates in the subspace [B, K, S]) of the chosen children."""
        config = self.config
        chosen_BKC = self._choose(y_BKS, index_BK, config.topk_child if allowed is None else 1, allowed)
        row_BKC = index_BK[..., None] * config.m_low + chosen_BKC
        encoder, decoder = self.low_encoder.flatten(0, 1), self.low_decoder.flatten(0, 1)
        pre_BKC = (_gather(encoder, row_BKC) * y_BKS[..., None, :]).sum(-1) + _gather(self.low_bias.flatten(), row_BKC)
        value_BKC = torch.relu(pre_BKC) * on_BK[..., None]
        if allowed is not None:
            value_BKC = value_BKC * allowed[row_BKC]
        return row_BKC, value_BKC, (value_BKC[..., None] * _gather(decoder, row_BKC)).sum(-2)

    def train_forward(self, x_BD: Tensor, dead: tuple[Tensor, ...]) -> Output:
        """Of scaled inputs; `dead` says which parents and which children are."""
        config = self.config
        with torch.no_grad():
            pre_BM = self.pre_activations(x_BD)
            order = Order(pre_BM.topk(config.topk_parent, dim=1, sorted=False).indices, config.m_top)
        spread = order.spread(config.subspace_dim)
        value_BK = self._values(x_BD, order)
        centred_BD = x_BD - self.bias.detach()
        shape = (*order.index_BK.shape, config.subspace_dim)
        y_BKS = sparse_encode(centred_BD, self.down.flatten(0, 1), spread).view(shape)
        row_BKC, child_BKC, z_BKS = self._children(y_BKS, order.index_BK, value_BK.detach() > 0)
        top_BD = self.bias + sparse_decode(value_BK, self.decoder, order)
        x_hat_BD = top_BD + sparse_decode(z_BKS.flatten(1), self.up.flatten(0, 1), spread)
        aux = self._reconstruct_error(pre_BM, x_BD, dead[0])
        if bool(dead[1].any()):
            z_BKS = self._children(y_BKS, order.index_BK, value_BK.detach() > 0, dead[1])[2]
            aux = (*aux, sparse_decode(z_BKS.flatten(1), self.up.flatten(0, 1), spread))
        codes = Codes(order.index_BK, value_BK, row_BKC.flatten(1), child_BKC.flatten(1))
        return Output(x_hat_BD, codes, top_BD, (), aux)

    @torch.no_grad()
    def encode(self, x_BD: Tensor) -> Codes:
        """Codes of activations as they are."""
        config = self.config
        x_BD = x_BD * config.input_scale
        index_BK = self.pre_activations(x_BD).topk(config.topk_parent, dim=1, sorted=False).indices
        centred_BD = x_BD - self.bias
        value_BK = torch.relu(dots(centred_BD, self.encoder, index_BK) + self.encoder_bias[index_BK])
        rows = index_BK[..., None] * config.subspace_dim + torch.arange(config.subspace_dim, device=x_BD.device)
        y_BKS = dots(centred_BD, self.down.flatten(0, 1), rows.flatten(1)).view(*index_BK.shape, -1)
        row_BKC, child_BKC, _ = self._children(y_BKS, index_BK, value_BK > 0)
        return Codes(index_BK, value_BK, row_BKC.flatten(1), child_BKC.flatten(1))

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        assert codes.child is not None and codes.child_value is not None
        config = self.config
        atoms = self.low_decoder.flatten(0, 1)[codes.child] * codes.child_value[..., None]
        parent = codes.child // config.m_low
        rows = parent[..., None] * config.subspace_dim + torch.arange(config.subspace_dim, device=parent.device)
        x_hat_BD = self.bias + sums(codes.value, self.decoder, codes.index)
        x_hat_BD = x_hat_BD + sums(atoms.flatten(1), self.up.flatten(0, 1), rows.flatten(1))
        return x_hat_BD / config.input_scale

    def counters(self) -> tuple[Tensor, ...]:
        return self.tokens_since_fired, self.children_since_fired

    @torch.no_grad()
    def to_flat(self, model_name: str = "", hook_name: str = "", hook_layer: int = 0) -> "FlatExport":
        """M (1 + L) latents in one dictionary of unit rows: parents, then each parent's children.

        The names stand in its cfg: the language model, and the hook of an evaluation whose values the head reads.
        """
        return FlatExport(self, FlatConfig(self.config.d_in, self.config.features, model_name, hook_name, hook_layer))


@dataclass
class FlatConfig:
    """Of a flat export, with the fields that SAELens and SAEBench look for in a dictionary's `cfg`."""

    d_in: int
    d_sae: int
    model_name: str = ""
    hook_name: str = ""
    hook_layer: int = 0
    hook_head_index: int | None = None
    context_size: int | None = None
    architecture: str = ARCHITECTURE
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = False
    normalize_activations: str = "none"
    prepend_bos: bool = True


class FlatExport(nn.Module):
    """A hierarchical model in the shape of SAELens' and SAEBench's dictionaries: cfg, W_enc, W_dec, b_enc, b_dec, encode, decode.

    Rows of W_dec have unit length; `encode` gives [..., F] codes that W_dec and b_dec turn into the model's own reconstruction.
    A child's code depends on whether its parent is active, which no product with W_enc says; W_enc is what it reads.
    """

    norm_F: Tensor

    def __init__(self, model: HierarchicalSAE, cfg: FlatConfig):
        super().__init__()
        scale = model.config.input_scale
        atoms_FD = torch.cat([model.decoder, model.child_atoms().flatten(0, 1)])
        self.register_buffer("norm_F", atoms_FD.norm(dim=1).clamp_min(1e-12).detach())
        readers_FD = torch.cat([model.encoder, (model.low_encoder @ model.down).flatten(0, 1)])
        self.model, self.cfg = model, cfg
        self.W_dec = nn.Parameter(atoms_FD / self.norm_F[:, None], requires_grad=False)
        self.W_enc = nn.Parameter(readers_FD.T * scale * self.norm_F, requires_grad=False)
        offset = torch.cat([model.encoder_bias, model.low_bias.flatten()]) - readers_FD @ model.bias
        self.b_enc = nn.Parameter(offset * self.norm_F, requires_grad=False)
        self.b_dec = nn.Parameter(model.bias / scale, requires_grad=False)

    @property
    def device(self) -> torch.device:
        """As SAEBench asks for it."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """As SAEBench asks for it."""
        return self.W_dec.dtype

    def encode(self, x: Tensor) -> Tensor:
        """[..., F] codes of activations [..., D] as they are."""
        codes_NF = dense_codes(self.model, x.reshape(-1, x.shape[-1])) * self.norm_F / self.model.config.input_scale
        return codes_NF.view(*x.shape[:-1], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """[..., D]."""
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def save(self, folder: str | Path) -> None:
        """cfg.json and sae_weights.safetensors as SAELens names them, for the architecture of `polytope_hsae.saelens.register`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        cfg, shape = asdict(self.cfg), self.model.config
        own = ("architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations")
        read_from = ("model_name", "hook_name", "hook_layer", "prepend_bos") if self.cfg.hook_name else ()
        write_json(folder / "cfg.json", {
            **{name: cfg[name] for name in own}, "reshape_activations": "none",
            **{name: getattr(shape, name) for name in ("m_top", "topk_parent", "m_low", "topk_child", "input_scale")},
            "metadata": {"sae_lens_version": "6.0.0", "exported_from": "polytope-hsae", **{name: cfg[name] for name in read_from}},
        })  # fmt: skip
        names = ("W_enc", "W_dec", "b_enc", "b_dec")
        tensors = {name: getattr(self, name) for name in names} | {"norm": self.norm_F}
        write_tensors(folder / "sae_weights.safetensors", tensors)


def build_sae(config: SAEConfig, generator: torch.Generator | None = None) -> Any:
    """The model of a configuration."""
    return (HierarchicalSAE if config.kind == "hierarchical" else FlatSAE)(config, generator)


@torch.no_grad()
def dense_codes(model: Any, x_BD: Tensor) -> Tensor:
    """[B, F] codes of all latents, for metrics on small samples: parents first, then children."""
    codes = model.encode(x_BD)
    dense_BF = x_BD.new_zeros(len(x_BD), model.config.features)
    dense_BF.scatter_add_(1, codes.index, codes.value)
    if codes.child is not None:
        dense_BF.scatter_add_(1, model.config.m_top + codes.child, codes.child_value)
    return dense_BF


def dense_decoder(model: Any) -> Tensor:
    """[F, D] what each latent adds to a (scaled) reconstruction."""
    if model.config.kind != "hierarchical":
        return model.decoder.detach()
    return torch.cat([model.decoder, model.child_atoms().flatten(0, 1)]).detach()


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] whose gradient is an index_add, which has one order on a CPU."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])
