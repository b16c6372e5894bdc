"""What a run will need, before it begins: tokens, memory, time."""

import time
from collections.abc import Sequence

import torch

from retrofit.config import RunConfig
from retrofit.models import load_model
from retrofit.train import NextTokenLoss
from studycore.devices import choose_device, cores


def estimate(configs: Sequence[RunConfig], device: str, processes: int | None = None) -> str:
    """Times updates on random tokens and says what the whole would take, besides evaluations of the whole split."""
    device, reason = choose_device(device)
    config = configs[-1]
    at_once = processes or (min(cores(), len(configs)) if device == "cpu" else 1)
    model, _ = load_model(config.model, config.model_revision, config.dropout)
    stepper = NextTokenLoss(model.to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    rows = max(config.batch_size // config.gradient_accumulation_steps, 1)
    ids_NT = torch.zeros(rows, config.block_size + 1, dtype=torch.long, device=device)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        dtype = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
        with torch.autocast(device, dtype=dtype, enabled=config.mixed_precision != "fp32"):
            loss = stepper(ids_NT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    update = min(taken) * config.gradient_accumulation_steps
    count = sum(p.numel() for p in model.parameters())
    # Weights, gradients, two moments; logits with their log-probabilities and gradient, in float32.
    values = 4 * count + 3 * rows * config.block_size * model.config.vocab_size
    trained = [c for c in configs if c.method != "none"]
    minutes = sum(c.num_steps for c in trained) * update / at_once / 60
    return (
        f"{len(trained)} runs of {config.tokens:,} tokens, {at_once} at a time on {device} ({reason}): about "
        f"{minutes:.1f} min for the updates ({update:.2f} s each), about {values * 4 / 2**20:.0f} MiB a run besides the libraries"
    )
