"""The phases as lists of jobs. All lie in the cache, so that a phase finds what another one has made."""

from polytope_hsae.config import BASELINES, StudyConfig
from studycore.jobs import Job


def phase1(study: StudyConfig) -> list[Job]:
    """Concepts, geometry, teacher vectors and their tests."""
    config = study.job("geometry")
    return [Job("geometry", config, verb="geometry", arm="geometry", labels={"phase": "phase1"}, shared=True)]


def phase2(study: StudyConfig) -> list[Job]:
    """Activations, then the baselines: autoencoders that know nothing of phase 1."""
    config = study.job("activations")
    job = Job("activations", config, ("geometry",), "activations", "activations", {"phase": "phase2"}, shared=True)
    return [*phase1(study), job, *_trainings(study, [arm for arm in study.arms if arm in BASELINES], "phase2")]


def phase3(study: StudyConfig) -> list[Job]:
    """The autoencoder that starts from the teacher vectors, and its controls."""
    return [*phase2(study), *_trainings(study, [arm for arm in study.arms if arm not in BASELINES], "phase3")]


def phase4(study: StudyConfig) -> list[Job]:
    """Steering, cross-entropy and stability of every autoencoder."""
    jobs = phase3(study)
    seeds = _seeds(study)
    for seed in seeds:
        other = seeds[(seeds.index(seed) + 1) % len(seeds)]
        for arm in study.arms:
            config = study.job("evaluate", arm=arm, seed=seed)
            needs = tuple(dict.fromkeys(["geometry", "activations", f"{arm}_s{seed}", f"{arm}_s{other}"]))
            name, labels = f"evaluate_{arm}_s{seed}", {"phase": "phase4"}
            jobs.append(Job(name, config, needs, arm, "evaluate", labels, shared=True))
    return jobs


def _trainings(study: StudyConfig, arms: list[str], phase: str) -> list[Job]:
    """Seed by seed, every arm."""
    return [
        Job(f"{arm}_s{seed}", study.job("train", arm=arm, seed=seed), ("geometry", "activations"), arm, "train",
            {"phase": phase}, keep_checkpoints=False, shared=True)
        for seed in _seeds(study)
        for arm in arms
    ]  # fmt: skip


def _seeds(study: StudyConfig) -> list[int]:
    first = int(study.run.get("seed", 0))
    return list(range(first, first + study.seeds))
