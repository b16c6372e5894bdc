"""Losses of reconstruction and through the language model, and how the two are weighed.

Shapes: U token types, N rows, B questions, T tokens, D dimensions, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentwire_adapter.data import Prompt
from latentwire_adapter.model.language_model import LanguageModel
from latentwire_adapter.model.reader import in_precision_of
from studycore.language.pretrained import check_tokens


def reconstruction_loss(y_UD: Tensor, x_UD: Tensor, weights_U: Tensor, variance: float, total: float) -> Tensor:
    """Squared error of weighted rows over their variance: 1 for the mean row, 0 for no error (unexplained variance).

    `variance`: weighted mean squared distance of all rows from their mean; `total`: weight that the sum is divided by.
    """
    return (weights_U * (y_UD - x_UD).square().sum(1)).sum() / (total * variance)


def teaching(rows_BTD: Tensor, taught_BT: Tensor) -> Tensor:
    """The rows, with a gradient where the mask says so alone: token types that no fit sees stand in prompts too, where they
    are read and must teach nothing."""
    return torch.where(taught_BT[..., None], rows_BTD, rows_BTD.detach())


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids_BT, mask_BT), each row at the right end."""
    length = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows], dtype=torch.int64, device=device)
    mask_BT = torch.tensor(
        [[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64, device=device
    )
    return ids_BT, mask_BT


class PromptLosses:
    """Losses of a batch of questions read through reconstructed rows by the frozen model."""

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Prompt],
        prefix_T: Sequence[int],
        objective: str,
        scope: str = "prompt",
    ):
        """Each row: prompt, then the answer. "prompt_ppl" predicts the prompt's tokens, "answer_ce" the answer's, "kl" both.

        `scope`: what arrives reconstructed, the whole prompt or the "paragraph" alone, as when answers are scored.
        """
        self.lm, self.objective = lm, objective
        asked = [[*prefix_T, *p.asked_T] for p in prompts]
        answers = [
            []
            if objective == "prompt_ppl"
            else lm.tokenizer(f" {p.question.answer}\n", add_special_tokens=False)["input_ids"]
            for p in prompts
        ]
        known = len(lm.table_VD)
        check_tokens((t for row in answers for t in row), lm.tokenizer, known, "training answers", "--model")
        rows = [[*a, *b] for a, b in zip(asked, answers, strict=True)]
        self.ids_BT, self.mask_BT = left_padded(rows, lm.device)
        length = self.ids_BT.shape[1]
        self.compressed_BT, self.scored_BT = torch.zeros_like(self.mask_BT), torch.zeros_like(self.mask_BT)
        for row, (given, prompt, answer) in enumerate(zip(prompts, asked, answers, strict=True)):
            start, end = length - len(prompt) - len(answer), length - len(answer)
            paragraph = start + len(prefix_T)
            if scope == "prompt":
                self.compressed_BT[row, start:end] = 1
            else:
                self.compressed_BT[row, paragraph : paragraph + len(given.context_T)] = 1
            # A scored position is that of a target; what has nothing before it is no target, and padding never is.
            first = end if objective == "answer_ce" else start + 1
            last = end if objective == "prompt_ppl" else length
            self.scored_BT[row, first:last] = 1

    def logits(self, rows_BTD: Tensor) -> Tensor:
        """Logits of the scored targets, [targets, V]."""
        position_BT = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        embeds = in_precision_of(self.lm, rows_BTD) * self.mask_BT[..., None].to(rows_BTD.dtype)
        out = self.lm.model(
            inputs_embeds=embeds, attention_mask=self.mask_BT, position_ids=position_BT, use_cache=False
        )
        return out.logits[:, :-1][self.scored_BT[:, 1:].bool()].float()

    def rows(self, arrived: Tensor) -> Tensor:
        """Reconstructed rows where the prompt is, the model's own where the answer is; in the model's precision."""
        raw_BTD = self.lm.table_VD[self.ids_BT]
        return torch.where(self.compressed_BT[..., None].bool(), arrived.to(raw_BTD.dtype), raw_BTD)

    @torch.no_grad()
    def uncompressed(self) -> Tensor:
        """Logits with the model's own rows."""
        return self.logits(self.lm.table_VD[self.ids_BT])

    def __call__(self, arrived_BTD: Tensor, reference: Tensor) -> tuple[Tensor, float]:
        """(loss, its floor: what the uncompressed prompt has). `reference`: what `uncompressed` gives."""
        logits = self.logits(self.rows(arrived_BTD))
        if self.objective == "kl":
            log_p, log_q = reference.log_softmax(-1), logits.log_softmax(-1)
            return (log_p.exp() * (log_p - log_q)).sum(-1).mean(), 0.0
        targets = self.ids_BT[:, 1:][self.scored_BT[:, 1:].bool()]
        floor = float(nn.functional.cross_entropy(reference, targets))
        return nn.functional.cross_entropy(logits, targets), floor


LEAST_EXCESS = 0.01
"""Share of its floor that a loss counts as above it at least, so that a loss next to its floor has no boundless weight."""


class Balance:
    """Weights of the terms of a sum of losses, from what is known before each update.

    "fixed": as given. "running_means": 1 / mean of the excess over the floor, means bias-corrected as Adam's are, so that the
    first weight is no accident; a term at its floor or below has nothing to gain, and no weight in that update.
    "uncertainty": exp(-s) of Kendall et al. (2018), s trained as sum exp(-s) L + s by the same gradient descent.
    "gradient_norms": each term's gradient brought to the mean of the norms, norms averaged likewise.
    """

    def __init__(self, method: str, weights: Mapping[str, float], decay: float = 0.9, rate: float = 0.05):
        self.method, self.given, self.decay, self.rate = method, dict(weights), decay, rate
        self.means = dict.fromkeys(weights, 0.0)
        self.counts = dict.fromkeys(weights, 0)
        self.log_variances = dict.fromkeys(weights, 0.0)

    def weigh(
        self, losses: Mapping[str, float], floors: Mapping[str, float], norms: Mapping[str, float]
    ) -> dict[str, float]:
        """Term -> weight of this update."""
        if self.method == "fixed":
            return dict(self.given)
        if self.method == "uncertainty":
            weights = {name: self.given[name] * math.exp(-s) for name, s in self.log_variances.items()}
            for name in self.log_variances:
                self.log_variances[name] -= self.rate * (1 - math.exp(-self.log_variances[name]) * losses[name])
            return weights
        above = {name: loss - floors[name] for name, loss in losses.items()}
        means = (
            self._means(norms)
            if self.method == "gradient_norms"
            else self._means({k: max(v, LEAST_EXCESS * floors[k]) if v > 0 else 0.0 for k, v in above.items()})
        )
        middle = sum(means.values()) / len(means) if self.method == "gradient_norms" and means else 1.0
        return {name: self.given[name] * middle / means[name] if name in means else 0.0 for name in self.given}

    def _means(self, observed: Mapping[str, float]) -> dict[str, float]:
        """Means of what is above 0, with this update's; a term that is not has none."""
        for name, value in observed.items():
            if value > 0:
                self.counts[name] += 1
                self.means[name] = self.decay * self.means[name] + (1 - self.decay) * value
        return {k: self.means[k] / (1 - self.decay ** self.counts[k]) for k, value in observed.items() if value > 0}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"means": dict(self.means), "counts": dict(self.counts), "log_variances": dict(self.log_variances)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From `state`."""
        if state:
            self.means, self.counts = dict(state["means"]), dict(state["counts"])
            self.log_variances = dict(state["log_variances"])


def gradient_shares(norms: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Term -> its share of the sum of weighted gradient norms."""
    sizes = {name: weights[name] * norms[name] for name in norms}
    whole = sum(sizes.values())
    return {name: size / whole if whole > 0 else 0.0 for name, size in sizes.items()}
