"""The command `retrofit`. Heavy imports stay inside the verbs, so that --help answers at once."""

import sys
from pathlib import Path

from studycore.cli import Study, main as run_study
from studycore.errors import UserError

STUDY = Study(
    name="retrofit",
    distribution="geometry-retrofit",
    question="Can geometry-aware training improve a pre-trained language model?",
    verbs={
        "measure": ("conditioning of every weight and of FFN activations of MODEL", "retrofit.cli:measure_verb"),
        "run": ("train one model with one method", "retrofit.cli:run_verb"),
        "compare": ("train all arms and seeds from one start, and report on all of them", "retrofit.cli:compare_verb"),
    },
    report="retrofit.report:report_command",
    resume="retrofit.cli:resume_run",
    checks="retrofit.cli:checks",
    libraries=("transformers", "accelerate", "datasets"),
)
PACKAGE = "retrofit"


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    folder = _seed_folder(arguments)
    if folder is not None:
        from retrofit.report import print_seed_folder
        from studycore.cli import exit_code

        return exit_code(STUDY.name, lambda: print_seed_folder(folder))
    return run_study(STUDY, arguments)


def _seed_folder(argv: list[str]) -> Path | None:
    """The folder of `report` when it holds the seed study's JSON files and is no run folder."""
    if len(argv) < 2 or argv[0] != "report":
        return None
    folder = Path(argv[-1].partition("=")[2] if argv[-1].startswith("--") else argv[-1])
    names = ("standard.json", "gram_only.json", "geometry.json")
    if (folder / "manifest.json").exists() or not any((folder / name).is_file() for name in names):
        return None
    return folder


def run_verb(argv: list[str]) -> None:
    """`retrofit run`."""
    from retrofit.config import RunConfig, TrainOptions
    from studycore.configuration import build, parse, to_dict, to_yaml
    from studycore.devices import relaunch

    values, given = parse([RunConfig, TrainOptions], argv, "retrofit run", PACKAGE)
    config, options = build(RunConfig, values), build(TrainOptions, given)
    if options.dry_run:
        from retrofit.estimate import estimate

        print(to_yaml(to_dict(config)))
        print(estimate([config], options.device))
        return
    folder = _folder("run", to_dict(config), options.output_dir, options.resume)
    # Every process of a relaunched run must get the same folder.
    kept = [item for item in argv if not item.replace("_", "-").startswith("--output-dir=")]
    relaunch("retrofit", ["run", *kept, "--output-dir", str(folder)], options.num_processes, options.device)
    _run(folder, config, options, options.resume, ["retrofit", "run", *argv])


def _run(folder: Path, config: object, options: object, resume: bool, argv: list[str]) -> None:
    import os
    import shutil

    from retrofit.config import RunConfig, TrainOptions
    from retrofit.report import print_report, seed_file
    from retrofit.train import train
    from studycore.configuration import to_dict
    from studycore.runs import read_manifest

    assert isinstance(config, RunConfig) and isinstance(options, TrainOptions)
    existing = resume and (folder / "manifest.json").exists()
    if not (existing and _same(folder, to_dict(config)) and _finished(folder)):
        train(config, folder, options, argv, existing)
        if os.environ.get("RANK", "0") != "0":
            return
        print_report(folder)
    output = options.output or _flag(list(read_manifest(folder)["argv"]), "--output")
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / seed_file(config.method), output)


def _flag(argv: list[str], name: str) -> str | None:
    """A flag's value in a recorded command line."""
    for item, following in zip(argv, [*argv[1:], ""], strict=True):
        if item.startswith(f"{name}="):
            return item.partition("=")[2]
        if item == name:
            return following
    return None


def compare_verb(argv: list[str]) -> None:
    """`retrofit compare`. Flags of `run` that are given change the comparison's base."""
    from retrofit.compare import plan, run_compare
    from retrofit.config import CompareConfig, CompareOptions, RunConfig
    from retrofit.report import print_report
    from studycore.configuration import build, check_types, parse, read_yaml, take_config, to_dict, to_yaml

    path, rest = take_config(argv, PACKAGE)
    given, base = parse([CompareOptions, RunConfig], rest, "retrofit compare", PACKAGE, partial=True, file=False)
    if base.get("method") is not None:
        raise UserError(f"--method: '{base['method']}' is for `run`; a comparison takes --arms '[standard, geometry]'")
    base.pop("method", None)
    values = check_types(CompareConfig, read_yaml(path)) if path else {}
    options = build(CompareOptions, given)
    values["base"] = {**values.get("base", {}), **base}
    if options.seeds is not None:
        values["seeds"] = options.seeds
    if options.arms is not None:
        values["arms"] = options.arms
    compare = build(CompareConfig, values)
    planned = plan(compare)
    if options.dry_run:
        from retrofit.estimate import estimate

        print(to_yaml(to_dict(compare)))
        for name in planned:
            print(name)
        print(estimate(list(planned.values()), options.device, options.processes))
        return
    folder = _folder("compare", to_dict(compare), options.output_dir, options.resume)
    if options.resume and (folder / "manifest.json").exists() and _same(folder, to_dict(compare)) and _finished(folder):
        return
    run_compare(compare, folder, options, ["retrofit", "compare", *argv], options.resume)
    print_report(folder)


def measure_verb(argv: list[str]) -> None:
    """`retrofit measure MODEL`."""
    from retrofit.config import MeasureConfig, RunOptions
    from studycore.configuration import build, parse, to_dict, to_yaml

    if argv and not argv[0].startswith("-"):
        argv = ["--model", *argv]
    values, given = parse([MeasureConfig, RunOptions], argv, "retrofit measure", PACKAGE)
    config, options = build(MeasureConfig, values), build(RunOptions, given)
    if options.dry_run:
        print(to_yaml(to_dict(config)))
        print("reads the model once and every matrix's singular values; seconds for some 10 million parameters")
        return
    from retrofit.measure import measure

    folder = _folder("measure", to_dict(config), options.output_dir, False)
    measure(config, folder, options, ["retrofit", "measure", *argv])


def resume_run(folder: Path) -> None:
    """`retrofit resume RUN`."""
    from retrofit.config import CompareOptions, TrainOptions
    from retrofit.record import read_config
    from retrofit.report import print_report
    from studycore.runs import read_manifest

    if _finished(folder):
        return
    manifest = read_manifest(folder)
    argv = list(manifest["argv"])
    device, threads = manifest["devices"]["device"].partition(":")[0], manifest["devices"]["threads"]
    if manifest["verb"] == "compare":
        from retrofit.compare import read_compare_config, run_compare

        options = CompareOptions(device=device, threads=threads, processes=manifest.get("processes"))
        run_compare(read_compare_config(folder), folder, options, argv, resume=True)
        print_report(folder)
    elif manifest["verb"] == "run":
        world = manifest["devices"]["world_size"]
        if world > 1:
            from studycore.devices import relaunch

            relaunch("retrofit", ["resume", str(folder)], world, device)
        _run(folder, read_config(folder), TrainOptions(device=device, threads=threads), True, argv)
    else:
        raise UserError(f"{folder}: a measurement has nothing to resume; run `retrofit measure` again")


def checks() -> list[tuple[str, bool, str]]:
    """The study's own part of `doctor`."""
    from retrofit.config import EMBEDDED_MODEL

    found = []
    try:
        from retrofit.models import locate

        found.append((f"{EMBEDDED_MODEL} is there: {locate(EMBEDDED_MODEL)}", True, ""))
    except UserError as error:
        found.append((f"{EMBEDDED_MODEL} is there", False, str(error)))
    from studycore.language import wordnet

    place = wordnet.find()
    found.append((f"WordNet is there{f': {place}' if place else ''}", place is not None, "`make setup` fetches it"))
    return found


def _same(folder: Path, values: dict[str, object]) -> bool:
    """Whether the run in the folder has this configuration; what differs is said later, by what opens it."""
    from studycore.configuration import read_yaml

    return read_yaml(folder / "config.yaml") == values


def _finished(folder: Path) -> bool:
    from studycore.runs import read_manifest

    if read_manifest(folder)["state"] != "done":
        return False
    print(f"{folder}: is finished; `retrofit report {folder}` shows it")
    return True


def _folder(verb: str, values: dict[str, object], output_dir: str | None, resume: bool) -> Path:
    """--output-dir; with --resume the newest run of this configuration, an unfinished one first."""
    from studycore.configuration import config_hash
    from studycore.runs import list_runs, new_folder, state_of

    if output_dir is not None:
        return Path(output_dir)
    root = Path("runs")
    if not resume:
        return new_folder(root, STUDY.name, verb, values)
    same = [
        (f, m)
        for f, m in list_runs(root, STUDY.name)
        if m["verb"] == verb and m["configuration_hash"] == config_hash(values)
    ]
    open_ones = [f for f, m in same if state_of(f, m) not in ("done", "running")]
    found = open_ones or [f for f, m in same if state_of(f, m) == "done"]
    if not found:
        raise UserError(
            f"--resume: no earlier {verb} run of this configuration under {root}/{STUDY.name}; leave --resume out"
        )
    return found[-1]


if __name__ == "__main__":
    sys.exit(main())
