"""The command `latentwire-adapter`: the study's declaration, and what `doctor` looks for."""

from functools import partial

from latentwire_adapter.config import QUESTION
from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study

OPTIONS = "latentwire_adapter.config:Options"
STUDY = Study(
    name="latentwire-adapter",
    distribution="latentwire-adapter",
    package="latentwire_adapter",
    question=QUESTION,
    decided_by="run --config full",
    verbs={
        "selfcheck": OneRun(
            "check the harness with MODEL before anything is trained",
            config="latentwire_adapter.config:SelfcheckConfig",
            train="latentwire_adapter.verbs:selfcheck",
            options=OPTIONS,
            first_argument="model",
            has_steps=False,
        ),
        "fit": OneRun(
            "count a training text's tokens and fit every dimension of the compressor",
            config="latentwire_adapter.config:FitConfig",
            train="latentwire_adapter.verbs:fit",
            options=OPTIONS,
            has_steps=False,
        ),
        "phase1": OneRun(
            "fit the compressor, train the adapter on reconstruction alone, answer questions through it",
            config="latentwire_adapter.config:Phase1Config",
            train="latentwire_adapter.train:phase1",
            options=OPTIONS,
            seeds="latentwire_adapter.plan:sweep_of_seeds",
        ),
        "phase2": OneRun(
            "train phase 1's adapter through the frozen language model, where its F1 is below 70",
            config="latentwire_adapter.config:Phase2Config",
            train="latentwire_adapter.train:phase2",
            options=OPTIONS,
        ),
        "evaluate": OneRun(
            "score one arm, such as a negative control or the linear inverse",
            config="latentwire_adapter.config:EvaluateConfig",
            train="latentwire_adapter.verbs:evaluate",
            options=OPTIONS,
        ),
        "run": ManyRuns(
            "the main job: self-check, phase 1, the decision, phase 2 where it is due, every arm, and the report",
            config="latentwire_adapter.config:SuiteConfig",
            plan="latentwire_adapter.plan:plan",
            of="phase2",
        ),
    },
    claims="latentwire_adapter.claims:claims",
    columns="latentwire_adapter.claims:columns",
    report="latentwire_adapter.report:report",
    doctor="latentwire_adapter.cli:doctor",
    libraries=("transformers", "accelerate", "datasets"),
    aliases={"model_id": "model", "save_dir": "output_dir"},
)


main = partial(run_command, STUDY)


def doctor() -> list[tuple[str, bool, str]]:
    """Whether the model and the text of the defaults are there."""
    from latentwire_adapter.config import EMBEDDED_MODEL
    from studycore.language import embedded

    return embedded.doctor([EMBEDDED_MODEL])
