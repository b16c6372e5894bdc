"""What the adapter is fitted on: counts of the training text, the compressor of them, and the token types with their codes.

Shapes: V token types of the table, U of a batch or of those the fits see, K dimensions of a code, D of an embedding.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import FitConfig, Phase1Config
from latentwire_adapter.data import held_out_types, nothing, training_counts
from latentwire_adapter.losses import reconstruction_loss
from latentwire_adapter.metrics.ledger import references
from latentwire_adapter.metrics.reconstruction import reconstruction_metrics
from latentwire_adapter.model.adapter import Adapter, build_adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor
from latentwire_adapter.model.language_model import LanguageModel
from studycore.errors import UserError
from studycore.files import write_tensors
from studycore.foreign import reading
from studycore.hashes import tensor_sha256
from studycore.models import check_fits
from studycore.run import Run
from studycore.run_folder import read_results
from studycore.streams import generator


@dataclass
class Fit:
    """Counts of the training text, and the compressor that was fitted on them."""

    counts_V: Tensor
    held_V: Tensor
    compressor: EmbeddingCompressor
    about: dict[str, Any]

    @property
    def seen_V(self) -> Tensor:
        """The types that the fits see: those of the text that are not held out."""
        return (self.counts_V > 0) & ~self.held_V

    def weights(self, alpha: float) -> Tensor:
        """weights_V = count^alpha of the types that the fits see, else 0; their mean over these is 1."""
        weights_V = torch.where(self.seen_V, self.counts_V.clamp(min=1e-12) ** alpha, 0.0)
        return weights_V / weights_V.sum() * self.seen_V.sum()


def make_fit(config: FitConfig, lm: LanguageModel, dimensions: int, heed: Callable[[], None] = nothing) -> Fit:
    """The fit of `dimensions` of the language model's table. `heed` is called for each training question."""
    types = len(lm.table_VD)
    counts_V, about = training_counts(config, lm.tokenizer, types, lm.context, heed)
    fewer = (
        counts_V
        if config.pca_samples is None
        else training_counts(
            replace(config, samples=config.pca_samples, pca_samples=None), lm.tokenizer, types, lm.context, heed
        )[0]
    )
    heed()
    held_V = held_out_types(counts_V, config.held_out_types, config.always_seen)
    compressor = EmbeddingCompressor(lm.table_VD.shape[1], dimensions, config.compress_method, config.seed)
    fit = Fit(fewer, held_V, compressor, about)
    began = time.perf_counter()
    compressor.to(lm.device).fit_counts(lm.table_VD, fit.weights(config.alpha).to(lm.device))
    fit.counts_V = counts_V
    present = counts_V > 0
    about |= {
        "fit_seconds": time.perf_counter() - began, "types_seen": int((present & ~held_V).sum()),
        "types_held_out": int((present & held_V).sum()), **references(counts_V, characters_per_token(lm, counts_V)),
    }  # fmt: skip
    return fit


def characters_per_token(lm: LanguageModel, counts_V: Tensor) -> float:
    """Bytes of a token's text, mean over the counted text."""
    types = counts_V.nonzero().flatten().tolist()
    sizes = torch.tensor([len(lm.tokenizer.decode([token]).encode()) for token in types], dtype=torch.float64)
    return float((counts_V[types] * sizes).sum() / counts_V.sum())


def save_fit(fit: Fit, folder: Path) -> None:
    """compressor/ and counts.safetensors. OSError when they cannot be written."""
    fit.compressor.save_pretrained(folder / "compressor")
    positions = torch.tensor(fit.about["positions"])
    tensors = {"counts": fit.counts_V.float(), "held_out": fit.held_V, "positions": positions}
    write_tensors(folder / "counts.safetensors", tensors)


def load_fit(folder: Path, lm: LanguageModel) -> Fit:
    """What `save_fit` wrote. UserError when it is not there, or is of another model's embeddings."""
    from safetensors.torch import load_file

    path = folder / "counts.safetensors"
    if not path.is_file():
        raise UserError(f"phase1: {folder} holds no counts.safetensors; name the folder of a finished phase 1 run")
    with reading(path, "counts of a training text", MEND):
        stored = load_file(path)
        counts_V, held_V, positions = stored["counts"].double(), stored["held_out"], int(stored["positions"])
    compressor = EmbeddingCompressor.from_pretrained(folder / "compressor").to(lm.device)
    if compressor.input_dim != lm.table_VD.shape[1]:
        raise UserError(
            f"phase1: {folder} is of embeddings with {compressor.input_dim} dimensions and the model's have "
            f"{lm.table_VD.shape[1]}; name a run of this model"
        )
    if not len(counts_V) == len(held_V) == len(lm.table_VD):
        raise UserError(
            f"phase1: {folder} counts {len(counts_V)} token types and the model has {len(lm.table_VD)}; name a run of this model"
        )
    return Fit(counts_V, held_V, compressor, {"positions": positions})


MEND = "name the folder of another finished phase 1 run, or make that one again"


def load_adapter(folder: Path, fit: Fit, lm: LanguageModel) -> Adapter:
    """The adapter of a finished phase 1 run. UserError when it is not there, or does not fit its codes."""
    adapter = Adapter.from_pretrained(folder / "adapter").to(lm.device)
    sizes = adapter.arguments["d_z"], adapter.arguments["d_model"]
    if sizes != (fit.compressor.output_dim, fit.compressor.input_dim):
        raise UserError(
            f"phase1: {folder} has an adapter from {sizes[0]} to {sizes[1]} dimensions and codes of {fit.compressor.output_dim} of "
            f"{fit.compressor.input_dim}; {MEND}"
        )
    return adapter


def phase1_folder(given: str | None, run: Run) -> Path:
    """Of the phase 1 run that this one needs, or that was named. UserError for none."""
    need = next((name for name in run.needs if name.startswith("phase1_")), None)
    return run.folder_of("phase1", given, need, holds="adapter/config.json")


def f1_of(folder: Path) -> float:
    """What a finished phase 1 run scored. UserError where its results do not say."""
    path = folder / "results.json"
    with reading(path, "results of a phase 1 run", MEND):
        return float(read_results(folder)["metrics"]["f1"])


def fit_of(config: Phase1Config, lm: LanguageModel, k: int, run: Run) -> Fit:
    """The fit with k dimensions: of the run that this one needs, or made here."""
    # What a fit holds are all counts; a projection that is fitted on fewer samples needs theirs.
    of_fewer = config.compress_method == "random" and config.pca_samples is not None
    if "fit" not in run.needs or of_fewer:
        return make_fit(config, lm, k, run.check_stop)
    fit = load_fit(run.needs["fit"], lm)
    if config.compress_method == "pca":
        fit.compressor = fit.compressor.truncated(k).to(lm.device)
    else:
        compressor = EmbeddingCompressor(lm.table_VD.shape[1], k, config.compress_method, config.seed)
        fit.compressor = compressor.to(lm.device).fit_counts(lm.table_VD, fit.weights(config.alpha).to(lm.device))
    return fit


def fingerprint(counts_V: Tensor) -> str:
    """SHA-256 of the counts as `save_fit` writes them."""
    return tensor_sha256(counts_V.float())


def check_width(config: FitConfig, width: int) -> None:
    """UserError where the configuration states another width of the embeddings than the model has."""
    if config.input_dim not in (None, width):
        raise UserError(
            f"input_dim: {config.input_dim} does not fit; the embeddings of '{config.model}' have {width} dimensions, so give that"
        )


def code_dimensions(config: Phase1Config, width: int) -> int:
    """Dimensions of the code. UserError for none, or more than an embedding has."""
    dimensions = config.compress_dim or round(width / config.ratio)
    if not 1 <= dimensions <= width:
        field, value = ("compress_dim", config.compress_dim) if config.compress_dim else ("ratio", config.ratio)
        raise UserError(f"{field}: {value} leaves {dimensions} of {width} dimensions; give 1 to {width} dimensions")
    return dimensions


class TypeRows:
    """The token types that the adapter trains on, with their codes and weights, and those that were held out."""

    def __init__(self, lm: LanguageModel, fit: Fit, config: Phase1Config):
        weights_V = fit.weights(config.adapter_alpha)
        self.ids_U = weights_V.nonzero().flatten().to(lm.device)
        self.w_U = weights_V.to(lm.device)[self.ids_U].float()
        self.x_UD = lm.table_VD[self.ids_U].float()
        self.z_UK = fit.compressor.compress(self.x_UD)
        held_U = ((fit.counts_V > 0) & fit.held_V).nonzero().flatten().to(lm.device)
        self.held_x_UD = lm.table_VD[held_U].float()
        self.held_z_UK = fit.compressor.compress(self.held_x_UD)
        counts_V = fit.counts_V.to(lm.device)
        self.seen_count_U, self.held_count_U = counts_V[self.ids_U], counts_V[held_U]
        self.mean_D = fit.compressor.mean
        share_U = self.w_U / self.w_U.sum()
        self.variance = float(share_U @ (self.x_UD - self.mean_D).square().sum(1))
        self.mse_unit = self.variance / self.x_UD.shape[1]
        self.code_rms = float((share_U @ self.z_UK.square().mean(1)).sqrt())
        self.row_rms = float(self.mse_unit**0.5)
        self.about = {
            "rows_per_epoch": len(self.ids_U), "positions": fit.about["positions"],
            "positions_per_row": fit.about["positions"] / len(self.ids_U),
        }  # fmt: skip

    def batch(self, config: Phase1Config, step: int, per_epoch: int, rank: int, world: int) -> tuple[Tensor, float]:
        """(this process's rows of update `step`, the weight that makes the mean over processes that of the batch)."""
        epoch, number = divmod(step, per_epoch)
        order = torch.randperm(len(self.ids_U), generator=generator(config.seed, "types", epoch)).to(self.ids_U.device)
        whole = order[number * config.batch_size : (number + 1) * config.batch_size]
        return whole[rank::world], float(self.w_U[whole].sum()) / world

    def loss(self, adapter: Adapter, config: Phase1Config, step: int, run: Run) -> Tensor:
        """The reconstruction loss of this process's rows of update `step`."""
        per_epoch = -(-len(self.ids_U) // config.batch_size)
        mine, weight = self.batch(config, step, per_epoch, run.rank, run.world)
        return reconstruction_loss(adapter(self.z_UK[mine]), self.x_UD[mine], self.w_U[mine], self.variance, weight)

    @torch.no_grad()
    def whole_loss(self, adapter: Adapter) -> float:
        """What the updates minimise, of all rows at once and without dropout: weights by adapter_alpha, not by counts."""
        y_UD = adapter.eval()(self.z_UK)
        return float(reconstruction_loss(y_UD, self.x_UD, self.w_U, self.variance, float(self.w_U.sum())))

    @torch.no_grad()
    def measure(self, decode: Any) -> dict[str, float]:
        """Reconstruction of seen types by their counts, and of held-out ones under names that start with held_out_."""
        if isinstance(decode, torch.nn.Module):
            decode.eval()
        seen = reconstruction_metrics(decode(self.z_UK), self.x_UD, self.seen_count_U, self.mean_D)
        if not len(self.held_x_UD):
            return seen
        held = reconstruction_metrics(decode(self.held_z_UK), self.held_x_UD, self.held_count_U, self.mean_D)
        return seen | {f"held_out_{name}": value for name, value in held.items()}

    @torch.no_grad()
    def arrays(self, adapter: Adapter, compressor: EmbeddingCompressor) -> dict[str, Tensor]:
        """By token type: count, squared distance from the mean, squared errors of adapter and linear inverse, the cosine of
        the adapter's row with the model's."""
        arrays: dict[str, Tensor] = {}
        for name, x_UD, z_UK, count_U in (
            ("seen", self.x_UD, self.z_UK, self.seen_count_U), ("held_out", self.held_x_UD, self.held_z_UK, self.held_count_U),
        ):  # fmt: skip
            y_UD = adapter(z_UK)
            arrays |= {
                f"{name}_count": count_U, f"{name}_spread": (x_UD - self.mean_D).square().sum(1),
                f"{name}_adapter": (y_UD - x_UD).square().sum(1),
                f"{name}_linear": (compressor.decompress(z_UK) - x_UD).square().sum(1),
                f"{name}_cosine": torch.nn.functional.cosine_similarity(y_UD, x_UD, dim=-1),
            }  # fmt: skip
        return arrays


def adapter_values(config: Phase1Config, k: int, width: int) -> dict[str, Any]:
    """The constructor's arguments."""
    return {
        "d_z": k, "d_model": width, "hidden_mult": config.adapter_hidden_mult, "dropout": config.adapter_dropout, "form": config.adapter_form,
    }  # fmt: skip


def check_room(config: Phase1Config, k: int, lm: LanguageModel) -> None:
    """UserError for an adapter whose training does not fit into memory."""
    values = adapter_values(config, k, lm.table_VD.shape[1])
    # Two hidden layers of a batch, before and after their non-linearity.
    hidden = 4 * 4 * config.batch_size * k * config.adapter_hidden_mult
    what = f"adapter_hidden_mult: {config.adapter_hidden_mult} times {k}"
    check_fits(lambda: build_adapter(values), what, "lower adapter_hidden_mult or batch_size", str(lm.device), hidden)


def start_adapter(values: Mapping[str, Any], seed: int, data: TypeRows, fitted: Fit) -> Adapter:
    """A new adapter, drawn from the seed, begun at the linear inverse."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = Adapter(**values)
    adapter.to(data.x_UD.device).start_at_inverse(fitted.compressor, data.code_rms, data.row_rms)
    return adapter
