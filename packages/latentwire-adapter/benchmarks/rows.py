"""One pass of the adapter's training over weighted token types beside one over positions, as the original study has it.

    python benchmarks/rows.py

Training prompts of the embedded default (2,000 questions), 72 of 576 dimensions kept, each type weighted by its count.
Prints rows and seconds of either pass, their ratio, and how far the two gradients of the whole loss lie apart: the loss is
the same function of the adapter, so its optimum is the same.
"""

import time

import torch
from torch import Tensor

from latentwire_adapter.config import Phase1Config
from latentwire_adapter.data import training_prompts
from latentwire_adapter.fitting import TypeRows, adapter_values, code_dimensions, make_fit, start_adapter
from latentwire_adapter.losses import reconstruction_loss
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.language_model import load_language_model


def whole_gradient(adapter: Adapter, z_NK: Tensor, x_ND: Tensor, w_N: Tensor, variance: float) -> tuple[Tensor, float]:
    """(gradient of the loss over all rows, seconds of the pass)."""
    adapter.zero_grad()
    began, total = time.perf_counter(), float(w_N.sum())
    for place in torch.arange(len(w_N)).split(1024):
        reconstruction_loss(adapter(z_NK[place]), x_ND[place], w_N[place], variance, total).backward()
    return torch.cat([p.grad.flatten() for p in adapter.parameters()]), time.perf_counter() - began


def main() -> None:
    config = Phase1Config(
        ratio=8.0, examples=0, samples=2000, fit_text=None, adapter_alpha=1.0, held_out_types=0.0, eval_samples=8
    )
    lm = load_language_model(config, "cpu")
    k = code_dimensions(config, lm.table_VD.shape[1])
    fit = make_fit(config, lm, k)
    data = TypeRows(lm, fit, config)
    adapter = start_adapter(adapter_values(config, k, lm.table_VD.shape[1]), 0, data, fit).eval()
    prompts = training_prompts(config, lm.tokenizer, lm.context, config.samples)
    ids_N = torch.tensor([t for p in prompts.prompts for t in (*prompts.prefix_T, *p.asked_T)])
    place_N = torch.searchsorted(data.ids_U, ids_N)
    ones_N = torch.ones(len(ids_N))
    of_types, ours = whole_gradient(adapter, data.z_UK, data.x_UD, data.w_U, data.variance)
    of_positions, theirs = whole_gradient(adapter, data.z_UK[place_N], data.x_UD[place_N], ones_N, data.variance)
    print(f"token types: {len(data.ids_U):,} rows, {ours:.2f} s a pass")
    print(f"positions: {len(ids_N):,} rows, {theirs:.2f} s a pass")
    print(f"positions / types {len(ids_N) / len(data.ids_U):.0f} in rows, {theirs / ours:.0f} in time")
    print(f"gradients of the whole loss differ by {float((of_types - of_positions).norm() / of_positions.norm()):.1e}")


if __name__ == "__main__":
    main()
