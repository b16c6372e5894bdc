"""The command `retrofit`: the study's declaration, and `report` for folders of the original study's files."""

from functools import partial
from pathlib import Path

from retrofit.config import QUESTION
from studycore.cli import COMMON, main as run_command, report_verb as report_of_a_run
from studycore.study import ManyRuns, OneRun, Study, Verb

STUDY = Study(
    name="retrofit",
    distribution="geometry-retrofit",
    package="retrofit",
    question=QUESTION,
    decided_by="compare --config full",
    verbs={
        "measure": OneRun(
            "conditioning of every weight and of FFN activations of MODEL",
            config="retrofit.config:MeasureConfig",
            train="retrofit.measure:measure",
            options="retrofit.config:MeasureOptions",
            first_argument="model",
            has_steps=False,
        ),
        "run": OneRun(
            "train one model with one method",
            config="retrofit.config:RunConfig",
            train="retrofit.train:train",
            options="retrofit.config:TrainOptions",
            seeds="retrofit.plan:sweep_of_seeds",
        ),
        "compare": ManyRuns(
            "train all arms and seeds from one start, and report on all of them",
            config="retrofit.config:CompareConfig",
            plan="retrofit.plan:plan",
            of="run",
        ),
        "report": Verb(COMMON["report"], "retrofit.cli:report_verb"),
    },
    claims="retrofit.claims:claims",
    columns="retrofit.claims:columns",
    report="retrofit.report:report",
    doctor="studycore.language.embedded:doctor",
    libraries=("transformers", "accelerate", "datasets"),
)


main = partial(run_command, STUDY)


def report_verb(argv: list[str]) -> None:
    """`retrofit report RUN`, also for a folder of the original study's JSON files."""
    from retrofit.legacy.original_json import is_original_folder
    from retrofit.legacy.scenarios import print_folder

    # RUN, --results_dir RUN or --results_dir=RUN
    name = argv[-1].rpartition("=")[2] if argv else ""
    if name and is_original_folder(Path(name)):
        print_folder(Path(name))
    else:
        report_of_a_run(STUDY, argv)
