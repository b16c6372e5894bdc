"""The language model that studycore ships, `studycore/wordnet-lm`: where it is, and what is measured of it.

    from studycore.reference_lm import locate
    model = AutoModelForCausalLM.from_pretrained(locate("studycore/wordnet-lm"))

lm_training.py made it. Needs the extra studycore[lm].
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studycore.claims import Statement, judge
from studycore.errors import UserError
from studycore.files import read_json

if TYPE_CHECKING:
    from studycore.lm_training import Recipe
    from studycore.paragraphs import Paragraph, Question

NAME = "studycore/wordnet-lm"
FOLDER = Path(__file__).parent / "models" / "wordnet-lm"
QUESTIONS = 1200
"""Held-out questions of the full measurement, six a paragraph."""

PERPLEXITY = Statement(
    id="lm_perplexity",
    statement="Perplexity of held-out glosses is at most two thirds that of a bigram model of the same text",
    source="requirement on the reference model",
    predicted="at most 0.667",
    unit="ratio",
    threshold=2 / 3,
    direction="below",
)
READING = Statement(
    id="lm_reading",
    statement="Answers to questions about held-out people are right with the paragraph before them",
    source="requirement on the reference model",
    predicted="80 or more",
    unit="F1 (0 to 100)",
    threshold=80,
    direction="above",
)
CLOSED_BOOK = Statement(
    id="lm_closed_book",
    statement="The same questions without the paragraph can't be answered",
    source="requirement on the reference model",
    predicted="under 15",
    unit="F1 (0 to 100)",
    threshold=15,
    direction="below",
)


def locate(name: str) -> str:
    """What `from_pretrained` takes for a model's name: the packaged folder for `studycore/wordnet-lm`, else the name.

    UserError when this installation lacks the folder.
    """
    if name != NAME:
        return name
    if not (FOLDER / "model.safetensors").is_file():
        raise UserError(f"{NAME}: {FOLDER} holds no model.safetensors; install studycore again")
    return str(FOLDER)


# ------------------------------------------------------------------------------------------------- what is measured
@dataclass(frozen=True)
class HeldOut:
    """Held-out texts and paragraphs."""

    texts: tuple[str, ...]
    paragraphs: "tuple[Paragraph, ...]"

    @classmethod
    def read(cls, documents: int | None = None, paragraphs_: int = QUESTIONS // 6) -> "HeldOut":
        """The first `documents` validation documents (all of them by default) and the first paragraphs."""
        from studycore import paragraphs, wordnet

        texts = [document.text for document in wordnet.documents() if document.split == "validation"]
        return cls(tuple(texts[:documents]), tuple(paragraphs.held_out(paragraphs_)))


def document_nll(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, tokens) of each text and the end-of-text token after it.

    Each text stands alone after an end-of-text token; float32; nothing is cut off.
    """
    import torch

    end = tokenizer.eos_token_id
    rows = [[end, *ids, end] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    model.eval()
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        length = max(len(rows[index]) for index in part)
        ids = torch.full((len(part), length), end)
        for row, index in enumerate(part):
            ids[row, : len(rows[index])] = torch.tensor(rows[index])
        with torch.no_grad():
            logits = model(ids.to(model.device), use_cache=False).logits[:, :-1].float()
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten().to(model.device), reduction="none"
            )
        nll = nll.view(len(part), length - 1).double().cpu()
        for row, index in enumerate(part):
            tokens = len(rows[index]) - 1
            found[index] = (float(nll[row, :tokens].sum()), tokens)
    return found


def answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Greedy continuations up to the end of the line, at most 8 tokens."""
    import torch

    line_end = tokenizer.encode("\n", add_special_tokens=False)[-1]
    found = []
    model.eval()
    for start in range(0, len(prompts), 100):
        rows = [
            [tokenizer.eos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
            for prompt in prompts[start : start + 100]
        ]
        length = max(map(len, rows))
        ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=[line_end, tokenizer.eos_token_id],
                pad_token_id=tokenizer.pad_token_id,
            )
        found += [tokenizer.decode(row[length:], skip_special_tokens=True).split("\n")[0].strip() for row in output]
    return found


def questions(paragraphs: "Sequence[Paragraph]") -> "list[tuple[Paragraph, Question]]":
    return [(paragraph, question) for paragraph in paragraphs for question in paragraph.questions]


def reading_scores(model: Any, tokenizer: Any, paragraphs: "Sequence[Paragraph]", context: bool) -> list[float]:
    """F1 (0 to 100) of each question, in the order of `questions(paragraphs)`."""
    from studycore.squad import f1

    asked = questions(paragraphs)
    given = answers(model, tokenizer, [paragraph.prompt(question, context) for paragraph, question in asked])
    return [100 * f1(answer, [question.answer]) for answer, (_, question) in zip(given, asked, strict=True)]


def measure_part(model: Any, tokenizer: Any, held_out: HeldOut) -> dict[str, float]:
    """Perplexity and F1 on a part of the held-out material, while training."""
    nll = document_nll(model, tokenizer, held_out.texts)
    scores = reading_scores(model, tokenizer, held_out.paragraphs, context=True)
    perplexity = math.exp(sum(total for total, _ in nll) / sum(tokens for _, tokens in nll))
    return {"perplexity": perplexity, "f1_with_context": sum(scores) / len(scores)}


def ngram_nll(tokenizer: Any, training: Sequence[str], texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """Summed nll of each text under a unigram model (add one) and an interpolated Kneser-Ney bigram model (discount 0.75).

    Both of the same tokens as the language model: end-of-text before each text as context, after it as a target.
    Kneser and Ney (1995); Chen and Goodman (1999), section 2.7, with the unigram back-off smoothed by adding one.
    """
    end, vocabulary, discount = tokenizer.eos_token_id, len(tokenizer), 0.75

    def tokens_of(given: Sequence[str]) -> list[list[int]]:
        return [[end, *ids, end] for ids in tokenizer(list(given), add_special_tokens=False)["input_ids"]]

    unigrams: Counter[int] = Counter()
    bigrams: Counter[tuple[int, int]] = Counter()
    for row in tokens_of(training):
        unigrams.update(row[1:])
        bigrams.update(pairwise(row))
    contexts: Counter[int] = Counter()
    followers: defaultdict[int, int] = defaultdict(int)
    preceders: defaultdict[int, int] = defaultdict(int)
    for (first, second), count in bigrams.items():
        contexts[first] += count
        followers[first] += 1
        preceders[second] += 1
    total, pairs = sum(unigrams.values()), len(bigrams)

    def bigram(first: int, second: int) -> float:
        continuation = (preceders.get(second, 0) + 1) / (pairs + vocabulary)
        if first not in contexts:
            return continuation
        kept = max(bigrams.get((first, second), 0) - discount, 0) / contexts[first]
        return kept + discount * followers[first] / contexts[first] * continuation

    rows = tokens_of(texts)
    by_unigram = [-sum(math.log((unigrams[t] + 1) / (total + vocabulary)) for t in row[1:]) for row in rows]
    by_bigram = [-sum(math.log(bigram(a, b)) for a, b in pairwise(row)) for row in rows]
    return by_unigram, by_bigram


def measure(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[tuple[str, str, str]]]:
    """(metrics, claims, ten answers) of the model in a Hugging Face folder, on all held-out material.

    The answers are (prompt, expected, given) for the first ten questions of as many paragraphs. On a CPU.
    """
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from studycore import paragraphs, wordnet
    from studycore.statistics import bootstrap

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = HeldOut.read()
    training = [document.text for document in wordnet.documents() if document.split == "train"]
    nll = document_nll(model, tokenizer, held_out.texts)
    unigram, bigram = ngram_nll(tokenizer, training, held_out.texts)
    tokens = [count for _, count in nll]
    words = [len(text.split()) + 1 for text in held_out.texts]
    with_context = reading_scores(model, tokenizer, held_out.paragraphs, context=True)
    without = reading_scores(model, tokenizer, held_out.paragraphs, context=False)
    freely_worded = paragraphs.held_out(len(held_out.paragraphs), free_wording=True)
    free = reading_scores(model, tokenizer, freely_worded, context=True)

    def perplexity(totals: Sequence[float], units: Sequence[int] = tokens) -> float:
        return math.exp(sum(totals) / sum(units))

    own = [total for total, _ in nll]
    metrics = {
        "perplexity": perplexity(own),
        "perplexity_unigram": perplexity(unigram),
        "perplexity_bigram": perplexity(bigram),
        "perplexity_per_word": perplexity(own, words),
        "validation_documents": len(tokens),
        "validation_tokens": sum(tokens),
        "f1_with_context": sum(with_context) / len(with_context),
        "f1_without_context": sum(without) / len(without),
        "f1_free_wording": sum(free) / len(free),
        "questions": len(with_context),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
    }

    rows = np.array([own, bigram, tokens]).T
    ratio = bootstrap(rows, lambda drawn: math.exp((drawn[:, 0].sum() - drawn[:, 1].sum()) / drawn[:, 2].sum()))
    by_paragraph = [bootstrap(np.reshape(scores, (-1, 6)).mean(1)) for scores in (with_context, without)]
    claims = [
        judge(PERPLEXITY, ratio, "Bootstrap over held-out documents."),
        judge(READING, by_paragraph[0], "Bootstrap over paragraphs of six questions."),
        judge(CLOSED_BOOK, by_paragraph[1], "Bootstrap over paragraphs of six questions."),
    ]
    first = [(paragraph, paragraph.questions[0]) for paragraph in held_out.paragraphs[:10]]
    prompts = [paragraph.prompt(question) for paragraph, question in first]
    given = answers(model, tokenizer, prompts)
    ten = [(p, q.answer, g) for p, (_, q), g in zip(prompts, first, given, strict=True)]
    return metrics, claims, ten


# ------------------------------------------------------------------------------------------------- what is written
@dataclass(frozen=True)
class Tolerance:
    """How far a measurement may be from the recorded one; counts must be equal."""

    perplexity: float
    """Relative."""
    f1: float
    """Points of 100."""


ROUNDING = Tolerance(1e-4, 0.5)
"""The same model measured on another machine: rounding turns an answer or two."""
RETRAINED = Tolerance(0.05, 5.0)
"""The same recipe on another device: other rounding from the first step on, so another model of the same quality."""


def write_run(folder: Path, recipe: "Recipe") -> None:
    """Measures folder/model and writes metrics.json and README.md beside the weights, results.json and the report."""
    from studycore.figures import new_figure, save_figure
    from studycore.files import write_atomic, write_json
    from studycore.metrics_log import read_rows
    from studycore.report import Picture, Report, Table, claims_text, write_report, write_results

    metrics, claims, ten = measure(folder / "model")
    write_json(folder / "model" / "metrics.json", {"metrics": metrics, "claims": claims, "answers": ten})
    for name in ("README.md", "WORDNET-LICENSE"):
        if (FOLDER / name).is_file():
            write_atomic(folder / "model" / name, (FOLDER / name).read_text())
    write_results(folder, "studycore", "reference-lm", metrics, claims)
    print(claims_text(claims))

    rows = read_rows(folder / "metrics.jsonl")
    figure, axes = new_figure(ncols=2)
    for kind in ("text", "reading", "copying"):
        found = [(row["step"], row[f"nll_{kind}"]) for row in rows if f"nll_{kind}" in row]
        axes[0].plot(*zip(*found, strict=True), label=kind)
    axes[0].set(xlabel="step", ylabel="training loss (nats a token)")
    axes[0].legend()
    found = [(row["step"], row["f1_with_context"]) for row in rows if "f1_with_context" in row]
    axes[1].plot(*zip(*found, strict=True), marker="o", markersize=3)
    axes[1].axhline(READING.threshold, color="0.5", linewidth=0.8, linestyle="--")
    axes[1].set(xlabel="step", ylabel="F1 on 30 held-out paragraphs", ylim=(0, 100))
    picture = Picture(
        save_figure(figure, folder / "figures" / "training.svg"),
        "Training loss of the three kinds of rows, and reading of held-out paragraphs; dashed: what is required.",
    )
    verdicts = [claim["verdict"] for claim in claims]
    report = Report(
        title="The reference language model",
        question="Has a small language model learnt WordNet's glosses and to read?",
        answer=f"{verdicts.count('supported')} of {len(verdicts)} requirements hold: perplexity "
        f"{metrics['perplexity']:.1f} (bigram model {metrics['perplexity_bigram']:.1f}), F1 "
        f"{metrics['f1_with_context']:.1f} with the paragraph and {metrics['f1_without_context']:.1f} without.",
        tables=[
            Table("Measured", ["metric", "value"], list(metrics.items())),
            Table("Ten held-out questions", ["asked", "expected", "answered"], ten),
        ],
        pictures=[picture],
    )
    write_report(folder, report)
    print(f"report: {folder / 'report.html'}")


def compare(metrics: Mapping[str, Any], recorded: Mapping[str, Any], tolerance: Tolerance = ROUNDING) -> list[str]:
    """Sentences on every metric that differs from the recorded one by more than the tolerance."""
    apart = []
    for name, value in recorded.items():
        got = metrics.get(name)
        if name.startswith("f1"):
            allowed = tolerance.f1
        else:
            allowed = tolerance.perplexity * abs(value) if name.startswith("perplexity") else 0
        if got is None:
            apart.append(f"{name} is not measured, recorded {_figure(value)}")
        elif not abs(got - value) <= allowed:
            apart.append(f"{name} is {_figure(got)}, recorded {_figure(value)}")
    return apart


# ------------------------------------------------------------------------------------------------------- commands
def info() -> None:
    """`studycore reference-lm info`: where it is and what is recorded of it."""
    folder = Path(locate(NAME))
    recorded = read_json(folder / "metrics.json")
    print(f"{NAME} is in {folder}")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{size / 1e6:.1f} MB in all; {', '.join(sorted(path.name for path in folder.iterdir()))}")
    for name, value in recorded["metrics"].items():
        print(f"  {name:<24}{_figure(value)}")
    print("studycore reference-lm verify measures it again; train makes it again from its recipe")


def verify() -> None:
    """`studycore reference-lm verify`: measures the shipped model again. UserError when it is not as recorded."""
    from studycore import paragraphs, wordnet
    from studycore.report import claims_text

    folder = Path(locate(NAME))
    recorded = read_json(folder / "metrics.json")
    here = {"wordnet": wordnet.fingerprint(), "paragraphs": paragraphs.fingerprint()}
    if here != read_json(folder / "data.json")["sha256"]:
        raise UserError(f"WordNet: {wordnet.find()} is not the 3.0 that the figures were measured on; put that there")
    print("measuring on all held-out material; a minute or two", flush=True)
    metrics, claims, ten = measure(folder)
    _print_beside(metrics, recorded["metrics"])
    print(claims_text(claims))
    for prompt, expected, given in ten:
        print(f"\n{prompt} {given}   ({'right' if given == expected else f'wrong: {expected}'})")
    if apart := compare(metrics, recorded["metrics"]):
        raise UserError(f"{NAME}: not as recorded: {'; '.join(apart)}; install studycore again, or report this")
    print("\nequal to what is recorded")


def train_command(argv: list[str]) -> None:
    """`studycore reference-lm train`: makes the model again and compares it with what is recorded.

    UserError when the default recipe gave a model of another quality than the recorded one.
    """
    from studycore.configuration import build, config_hash, parse, to_dict
    from studycore.lm_training import STUDY, VERB, Recipe, TrainOptions, read_recipe, train
    from studycore.runs import list_runs, new_folder

    prog = "studycore reference-lm train"
    changed, given = parse([Recipe, TrainOptions], argv, prog, "studycore", partial=True, file=False)
    options = build(TrainOptions, given)
    folder = Path(options.output_dir) if options.output_dir else None
    continued = options.resume and folder is not None and (folder / "config.yaml").is_file()
    recipe = build(Recipe, (to_dict(read_recipe(folder)) if continued and folder else {}) | changed)
    if options.resume and folder is None:
        same = [
            path
            for path, manifest in list_runs(Path("runs"), STUDY)
            if (manifest["verb"], manifest["configuration_hash"]) == (VERB, config_hash(to_dict(recipe)))
            and manifest["state"] != "done"
        ]
        folder = same[-1] if same else None
        print(f"continues {folder}" if folder else "no unfinished run of this recipe under runs/; a new one begins")
    folder = folder or new_folder(Path("runs"), STUDY, VERB, to_dict(recipe))
    train(recipe, folder, options, argv, resume=options.resume)
    metrics = read_json(folder / "model" / "metrics.json")["metrics"]
    print(f"the model is in {folder / 'model'}")
    if recipe != Recipe():
        print("of another recipe than the recorded model, so there is nothing to compare it with")
    elif (FOLDER / "metrics.json").is_file():
        recorded = read_json(FOLDER / "metrics.json")["metrics"]
        _print_beside(metrics, recorded)
        if apart := compare(metrics, recorded, RETRAINED):
            raise UserError(f"{folder}: not of the recorded quality: {'; '.join(apart)}; do not ship it")
        print("of the recorded quality")


def _print_beside(metrics: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        print(f"  {name:<24}{_figure(value):<12} recorded {_figure(recorded.get(name))}")


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
