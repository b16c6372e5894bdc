"""The command `least-action`. Heavy imports stay inside the verbs, so that --help answers at once."""

import dataclasses
import sys
from pathlib import Path

from studycore.cli import Study, main as run_study
from studycore.errors import UserError

STUDY = Study(
    name="least-action",
    distribution="least-action",
    question="Grokking on modular arithmetic: when does a network that has memorised come to generalise?",
    verbs={
        "train": ("train one configuration (or several seeds of it)", "least_action.cli:train_verb"),
        "sweep": ("train arms, grids and seeds, and report on all of them", "least_action.cli:sweep_verb"),
    },
    report="least_action.report:report_command",
    resume="least_action.cli:resume_run",
    libraries=("accelerate",),
)
PACKAGE = "least_action"


def main(argv: list[str] | None = None) -> int:
    return run_study(STUDY, argv)


def train_verb(argv: list[str]) -> None:
    """`least-action train`."""
    from least_action.config import SweepConfig, TrainerConfig, TrainOptions
    from studycore.configuration import build, parse, read_yaml, take_config, to_dict, to_yaml

    path, _ = take_config(argv, PACKAGE)
    if path is not None and {"base", "grid", "arms"} & set(read_yaml(path)):
        raise UserError(f"--config: {path} is a sweep's configuration; run it with `least-action sweep`")
    values, given = parse([TrainerConfig, TrainOptions], argv, "least-action train", PACKAGE)
    config, options = build(TrainerConfig, values), build(TrainOptions, given)
    if options.extra_epochs < 0:
        raise UserError(f"--extra-epochs: {options.extra_epochs} must not be negative")
    if options.extra_epochs and not options.resume:
        raise UserError("--extra-epochs: extends an earlier run, so give --resume as well (or set --epochs)")
    if options.seeds < 1:
        raise UserError(f"--seeds: {options.seeds} is too few; give at least 1")
    if options.seeds > 1:
        changed = {k: v for k, v in to_dict(config).items() if v != getattr(TrainerConfig, k)}
        sweep_options = _sweep_options(options)
        _sweep(SweepConfig(base=changed | {"seed": config.seed}, seeds=options.seeds), sweep_options, argv)
        return
    if options.dry_run:
        from least_action.estimate import estimate

        print(to_yaml(to_dict(config)))
        print(estimate([config], options.device))
        return
    from studycore.devices import relaunch

    folder = _folder("train", to_dict(config), options.output_dir, options.resume, options.extra_epochs)
    # Every process of a relaunched run must get the same folder.
    relaunch("least_action", _with_folder("train", argv, folder), options.num_processes, options.device)
    _train(folder, config, options, options.resume, options.extra_epochs, ["least-action", "train", *argv])


def _train(folder: Path, config: object, options: object, resume: bool, extra_epochs: int, argv: list[str]) -> None:
    import os

    from least_action.config import RunOptions, TrainerConfig
    from least_action.report import print_report
    from least_action.train import train
    from studycore.configuration import to_dict

    assert isinstance(config, TrainerConfig) and isinstance(options, RunOptions)
    existing = resume and (folder / "manifest.json").exists()
    if extra_epochs and not existing:
        raise UserError(f"--extra-epochs: {folder} holds no run to extend; leave it out, or name the run's folder")
    if existing and not extra_epochs and _same(folder, to_dict(config)) and _finished(folder):
        return
    train(config, folder, options, argv, existing, extra_epochs)
    if os.environ.get("RANK", "0") == "0":
        print_report(folder)


def sweep_verb(argv: list[str]) -> None:
    """`least-action sweep`. Flags of `train` that are given change the sweep's base."""
    from least_action.config import SweepConfig, SweepOptions, TrainerConfig
    from studycore.configuration import build, check_types, parse, read_yaml, take_config

    path, rest = take_config(argv, PACKAGE)
    given, base = parse([SweepOptions, TrainerConfig], rest, "least-action sweep", PACKAGE, partial=True, file=False)
    if path is None:
        raise UserError("--config: a sweep needs a file or the name of a sweep configuration, such as quick")
    sweep_values = check_types(SweepConfig, read_yaml(path))
    options = build(SweepOptions, given)
    sweep_values["base"] = {**sweep_values.get("base", {}), **base}
    if options.seeds is not None:
        sweep_values["seeds"] = options.seeds
    _sweep(build(SweepConfig, sweep_values), options, argv)


def _sweep(sweep: object, options: object, argv: list[str]) -> None:
    from least_action.config import SweepConfig, SweepOptions
    from studycore.configuration import to_dict, to_yaml

    assert isinstance(sweep, SweepConfig) and isinstance(options, SweepOptions)
    from least_action.sweep import choose_experiments, plan_sweep, run_sweep

    experiments = plan_sweep(sweep)
    if options.dry_run:
        from least_action.estimate import estimate

        print(to_yaml(to_dict(sweep)))
        chosen = choose_experiments(list(experiments), options)
        for index, name in enumerate(experiments):
            if name in chosen:
                values = " ".join(f"--{k} {v}" for k, v in experiments[name][0].values.items())
                print(f"{index}: {name}: least-action train {values}")
        print(estimate([experiments[name][1] for name in chosen], options.device, options.processes))
        return
    from least_action.report import print_report

    folder = _folder("sweep", to_dict(sweep), options.output_dir, options.resume, 0)
    if options.resume and (folder / "manifest.json").exists() and _same(folder, to_dict(sweep)) and _finished(folder):
        return
    run_sweep(sweep, folder, options, ["least-action", "sweep", *argv], options.resume)
    print_report(folder)


def resume_run(folder: Path) -> None:
    """`least-action resume RUN`."""
    from least_action.config import RunOptions, SweepOptions
    from least_action.record import read_config
    from least_action.report import print_report
    from least_action.sweep import read_sweep_config, run_sweep
    from studycore.runs import read_manifest

    if _finished(folder):
        return
    manifest = read_manifest(folder)
    argv = list(manifest["argv"])
    device, threads = manifest["devices"]["device"].partition(":")[0], manifest["devices"]["threads"]
    if manifest["verb"] == "sweep":
        run_sweep(read_sweep_config(folder), folder, SweepOptions(device=device, resume=True), argv, resume=True)
        print_report(folder)
    else:
        _train(folder, read_config(folder), RunOptions(device=device, threads=threads), True, 0, argv)


def _same(folder: Path, values: dict[str, object]) -> bool:
    """Whether the run in the folder has this configuration; what differs is said later, by what opens it."""
    from studycore.configuration import read_yaml

    return read_yaml(folder / "config.yaml") == values


def _finished(folder: Path) -> bool:
    from studycore.runs import read_manifest

    if read_manifest(folder)["state"] != "done":
        return False
    print(f"{folder}: is finished; `least-action report {folder}` shows it")
    return True


def _folder(verb: str, values: dict[str, object], output_dir: str | None, resume: bool, extra_epochs: int) -> Path:
    """--output-dir; with --resume the newest run of this configuration (unfinished, or any when it is extended)."""
    from studycore.configuration import config_hash
    from studycore.runs import list_runs, new_folder, state_of

    if output_dir is not None:
        return Path(output_dir)
    root = Path("runs")
    if resume:
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
    return new_folder(root, STUDY.name, verb, values)


def _with_folder(verb: str, argv: list[str], folder: Path) -> list[str]:
    kept = [item for item in argv if not item.replace("_", "-").startswith("--output-dir=")]
    return [verb, *kept, "--output-dir", str(folder)]


def _sweep_options(options: object) -> "object":
    from least_action.config import RunOptions, SweepOptions

    assert isinstance(options, RunOptions)
    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(RunOptions)}
    return SweepOptions(**shared, resume=getattr(options, "resume", False))


if __name__ == "__main__":
    sys.exit(main())
