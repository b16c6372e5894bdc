"""Adapter training on weighted token types beside training on positions, as the original study has it.

    python benchmarks/rows.py

Life sketches and WordNet's glosses, if they are there, in the small model's tokens; one pass over either, 64 dimensions
of 256 kept. Prints rows and seconds of a pass, and their ratio.
"""

import time

import torch

from latentwire_adapter.config import FIT_TEXT, Phase1Config
from latentwire_adapter.losses import reconstruction_loss
from latentwire_adapter.model.language_model import load_language_model
from latentwire_adapter.train import TypeRows, make_fit, start_adapter
from studycore.language import wordnet


def main() -> None:
    text = FIT_TEXT if wordnet.find() is not None else None
    config = Phase1Config(
        model="studycore/wordnet-lm", examples=0, ratio=4.0, samples=10000, fit_text=text, eval_samples=8
    )
    lm = load_language_model(config, "cpu")
    fit = make_fit(config, lm, 64)
    data = TypeRows(lm, fit, config)
    adapter = start_adapter(config, 64, data, fit)
    optimizer = torch.optim.AdamW(adapter.parameters(), 1e-3)
    rows, positions = len(data.ids_U), fit.about["positions"]
    steps = -(-rows // config.batch_size)
    began = time.perf_counter()
    for step in range(steps):
        mine, weight = data.batch(config, step, steps, 0, 1)
        reconstruction_loss(adapter(data.z_UK[mine]), data.x_UD[mine], data.w_U[mine], data.variance, weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    print(f"token types: {rows:,} rows, {seconds:.1f} s a pass")
    print(f"positions: {positions:,} rows, {seconds * positions / rows:.0f} s a pass at the same speed")
    print(f"positions / types {positions / rows:.0f}")


if __name__ == "__main__":
    main()
