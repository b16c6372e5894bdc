"""The command `polytope-hsae`: the study's declaration."""

from functools import partial

from polytope_hsae.config import QUESTION
from studycore.cli import main as run_command
from studycore.study import ManyRuns, OneRun, Study

PLANS = {
    "phase1": "concepts, causal geometry and teacher vectors, with their tests against nulls",
    "phase2": "activations, and autoencoders that know nothing of phase 1",
    "phase3": "autoencoders that start from the teacher vectors, and their controls",
    "phase4": "steering, cross-entropy and stability of all of them",
}
STUDY = Study(
    name="polytope-hsae",
    distribution="polytope-hsae",
    package="polytope_hsae",
    question=QUESTION,
    decided_by="all --config smollm2",
    verbs={
        "all": ManyRuns(
            "all four phases", config="polytope_hsae.config:StudyConfig", plan="polytope_hsae.plan:phase4", of="train",
            resolve="polytope_hsae.config:with_flags", estimate="polytope_hsae.estimate:estimate",
        ),
        **{
            phase: ManyRuns(
                summary, config="polytope_hsae.config:StudyConfig", plan=f"polytope_hsae.plan:{phase}", of="train",
                resolve="polytope_hsae.config:with_flags",
                estimate="polytope_hsae.estimate:estimate" if phase != "phase1" else "",
            )
            for phase, summary in PLANS.items()
        },
        "geometry": OneRun(
            "a job: phase 1 of a model", config="polytope_hsae.config:GeometryConfig", train="polytope_hsae.extraction:extract",
            has_steps=False,
        ),
        "activations": OneRun(
            "a job: activations with labels", config="polytope_hsae.config:ActivationConfig",
            train="polytope_hsae.activations:capture", options="polytope_hsae.config:JobOptions", has_steps=False,
        ),
        "train": OneRun(
            "a job: one autoencoder", config="polytope_hsae.config:TrainConfig", train="polytope_hsae.training:train",
            options="polytope_hsae.config:JobOptions",
        ),
        "evaluate": OneRun(
            "a job: steering and cross-entropy of one autoencoder", config="polytope_hsae.config:EvaluateConfig",
            train="polytope_hsae.steering:evaluate", options="polytope_hsae.config:JobOptions", has_steps=False,
        ),
    },
    claims="polytope_hsae.claims:claims",
    columns="polytope_hsae.claims:columns",
    report="polytope_hsae.report:report",
    doctor="studycore.language.embedded:doctor",
    libraries=("accelerate", "transformers"),
)  # fmt: skip


main = partial(run_command, STUDY)
