"""What a phase minimises, and what an evaluation of it logs: one class a phase, which the loop in `train.py` is given.

Both train on token types weighted by how often they stand in the text, since a token's code is the same wherever it stands:
the same optimum as on positions, with fewer rows, where the weight is the count. (By default it is the count's square root, and
further text counts at a share: another optimum, which is meant.)

Shapes: B questions, T tokens, V token types of the table, D dimensions.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from latentwire_adapter.config import Phase1Config, Phase2Config
from latentwire_adapter.data import Prompts
from latentwire_adapter.evaluation import Arm, log, reader_of
from latentwire_adapter.fitting import Fit, TypeRows
from latentwire_adapter.losses import PromptLosses, teaching
from latentwire_adapter.metrics.squad import batch_metrics
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.language_model import LanguageModel
from latentwire_adapter.model.reader import text_of
from studycore.run import Run

Losses = tuple[dict[str, Tensor], dict[str, float]]
"""(loss of each term, floor of each: what it has for uncompressed prompts)."""


class Reconstruction:
    """Phase 1: the squared error of the rows, over `epochs` passes through the token types."""

    name, balance, log_every = "reconstruction", "fixed", 0
    rate = "adapter_lr"
    """Field of the configuration with the peak learning rate."""

    def __init__(self, config: Phase1Config, data: TypeRows, lm: LanguageModel, prompts: Prompts, fitted: Fit):
        self.config, self.data, self.lm, self.prompts, self.fitted = config, data, lm, prompts, fitted
        self.per_epoch = math.ceil(len(data.ids_U) / config.batch_size)
        self.steps = self.per_epoch * config.epochs
        self.weights = {"reconstruction": config.recon_weight}

    def epoch(self, step: int) -> int:
        """Whole passes through the token types before update `step`."""
        return step // self.per_epoch

    def losses(self, adapter: Adapter, step: int, run: Run) -> Losses:
        """Of this process's rows of update `step`. A perfect reconstruction has no error: the floor is 0."""
        return {"reconstruction": self.data.loss(adapter, self.config, step, run)}, {"reconstruction": 0.0}

    def evaluate(self, adapter: Adapter, step: int, run: Run) -> None:
        """Logs how well all token types are reconstructed, and on demand the F1 of a few questions."""
        config, data = self.config, self.data
        row = data.measure(adapter)
        log(run, {
            "type": "train_step", "loss": config.recon_weight * data.whole_loss(adapter), **row,
            "lr": learning_rate(step, self.steps, config.adapter_lr),
            "compression_ratio": data.x_UD.shape[1] / data.z_UK.shape[1], "batch_size": config.batch_size, **gpu_memory(),
        }, self.epoch(step))  # fmt: skip
        if config.quick_eval_samples and not run.dry:
            f1 = quick_f1(config, self.lm, self.prompts, self.fitted, adapter)
            log(run, {"type": "quick_eval", "quick_f1": f1}, self.epoch(step))


class ThroughModel:
    """Phase 2: what the frozen language model makes of the rows that arrive, beside the reconstruction of phase 1."""

    name, rate = "language", "phase2_lr"

    def __init__(self, config: Phase2Config, data: TypeRows, lm: LanguageModel, taught: Prompts, fitted: Fit):
        self.config, self.data, self.lm, self.taught, self.fitted = config, data, lm, taught, fitted
        self.steps, self.balance, self.log_every = config.steps, config.balance, config.log_every
        self.weights = {"reconstruction": config.recon_weight, config.objective: config.ce_weight}

    def epoch(self, step: int) -> int:
        """Whole passes through the training questions before update `step`."""
        return step * self.config.phase2_batch_size // len(self.taught.prompts)

    def losses(self, adapter: Adapter, step: int, run: Run) -> Losses:
        """Of this process's share of the next questions, and of its rows of update `step`."""
        config, lm, taught = self.config, self.lm, self.taught
        first, size = step * config.phase2_batch_size, config.phase2_batch_size
        asked = [taught.prompts[i % len(taught.prompts)] for i in range(first, first + size)][run.rank :: run.world]
        through = PromptLosses(lm, asked, taught.prefix_T, config.objective, config.scope)
        arrived_BTD = adapter(self.fitted.compressor.compress(lm.table_VD[through.ids_BT].float()))
        arrived_BTD = teaching(arrived_BTD, ~self.fitted.held_V.to(lm.device)[through.ids_BT])
        language, floor = through(arrived_BTD, through.uncompressed())
        reconstruction = self.data.loss(adapter, config, step, run)
        return {"reconstruction": reconstruction, config.objective: language}, {
            "reconstruction": 0.0,
            config.objective: floor,
        }

    def evaluate(self, adapter: Adapter, step: int, run: Run) -> None:
        """Logs how well all token types are reconstructed."""
        log(run, {"type": "reconstruction", **self.data.measure(adapter)}, self.epoch(step))


Objective = Reconstruction | ThroughModel


def learning_rate(step: int, total: int, peak: float) -> float:
    """Half a cosine from the peak to a hundredth of it."""
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / max(total, 1))))


def quick_f1(config: Phase1Config, lm: LanguageModel, prompts: Prompts, fitted: Fit, adapter: Adapter) -> float:
    """F1, from 0 to 100, of the first questions through the adapter as it is; the same in each process."""
    few = replace(prompts, prompts=prompts.prompts[: config.quick_eval_samples])
    arm = Arm("adapter", few, codecs.adapted(lm.table_VD, fitted.compressor, adapter.eval()))
    reader = reader_of(arm, lm, config, codecs.raw(lm.table_VD))
    texts = [text_of(lm, tokens) for tokens in reader.answer(few.prompts, config.max_new_tokens)]
    return 100 * batch_metrics(texts, [p.question.answers for p in few.prompts])[1]


def gpu_memory() -> dict[str, float]:
    """What the original study logs of each GPU; empty without one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    used = {f"gpu_{i}_allocated_gb": torch.cuda.memory_allocated(i) / 2**30 for i in range(count)}
    return {**used, "gpu_count": count, "total_gpu_memory_gb": sum(used.values())} if count else {}
