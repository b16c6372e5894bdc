"""The command `ternary-vae`. Heavy imports stay inside the verbs, so that --help answers at once."""

import dataclasses
import re
import sys
from pathlib import Path

from studycore.cli import Parser, Study, main as run_study
from studycore.errors import UserError

STUDY = Study(
    name="ternary-vae",
    distribution="ternary-vae",
    question="A hyperbolic VAE over all ternary operations: does it cover them, and do its radii follow the 3-adic hierarchy?",
    verbs={
        "train": ("train from scratch: coverage, then hierarchy, or both at once", "ternary_vae.cli:train_verb"),
        "finetune": ("train a checkpoint's projections, after verifying it", "ternary_vae.cli:finetune_verb"),
        "sweep": ("train phases of arms over seeds, and report on all of them", "ternary_vae.cli:sweep_verb"),
        "evaluate": ("every metric of a checkpoint, beside its baselines", "ternary_vae.cli:evaluate_verb"),
        "inspect": ("what is in a checkpoint, does it rebuild, and if not, why", "ternary_vae.cli:inspect_verb"),
        "import": ("bring in a .pt file of the seed study's layout", "ternary_vae.cli:import_verb"),
    },
    report="ternary_vae.report:report_command",
    resume="ternary_vae.cli:resume_run",
    libraries=("accelerate", "geoopt"),
)
PACKAGE = "ternary_vae"


def main(argv: list[str] | None = None) -> int:
    return run_study(STUDY, argv)


def train_verb(argv: list[str]) -> None:
    """`ternary-vae train`."""
    _train_command("train", argv)


def finetune_verb(argv: list[str]) -> None:
    """`ternary-vae finetune CHECKPOINT`: the hierarchy stage alone, by the configuration `finetune` unless another is given.

    The architecture is the checkpoint's; its flags need not be given again.
    """
    if not argv or argv[0] in ("--help", "-h"):
        print(
            "usage: ternary-vae finetune CHECKPOINT [flags of train]\n\nCHECKPOINT: a run folder, or a checkpoint's own folder.\n"
        )
        _train_command("finetune", ["--help"])
        return
    if argv[0].startswith("-"):
        raise UserError(f"finetune: '{argv[0]}' stands where the checkpoint should; give it first, then the flags")
    _train_command("finetune", argv[1:], argv[0])


def _train_command(verb: str, argv: list[str], start: str | None = None) -> None:
    from studycore.configuration import build, parse, read_yaml, take_config, to_dict, to_yaml
    from ternary_vae.config import SweepConfig, TrainConfig, TrainOptions

    argv = [re.sub("^--max[-_]epochs", "--epochs", item) for item in argv]  # the seed study's other name
    path, _ = take_config(argv, PACKAGE)
    if path is not None and {"base", "phases", "coverage"} & set(read_yaml(path)):
        raise UserError(f"--config: {path} is a sweep's configuration; run it with `ternary-vae sweep`")
    if verb == "train":
        values, given = parse([TrainConfig, TrainOptions], argv, f"ternary-vae {verb}", PACKAGE)
    else:
        values, given = _finetune_values(argv, start)
    config, options = build(TrainConfig, values), build(TrainOptions, given)
    if options.seeds < 1:
        raise UserError(f"--seeds: {options.seeds} is too few; give at least 1")
    if options.seeds > 1:
        if options.num_processes is not None:
            raise UserError(
                "--num-processes: several seeds are trained as a sweep, a process each; leave it or --seeds out"
            )
        if verb != "train":
            raise UserError("--seeds: finetune starts from one checkpoint; use a sweep for several seeds")
        changed = {k: v for k, v in to_dict(config).items() if k != "seed" and v != to_dict(TrainConfig())[k]}
        shared = {
            f.name: given[f.name]
            for f in dataclasses.fields(TrainOptions)
            if f.name in given and f.name not in ("seeds", "num_processes")
        }
        from ternary_vae.config import SweepOptions

        sweep = SweepConfig(coverage={"seed": config.seed}, from_scratch={"train": changed}, seeds=options.seeds)
        _sweep(sweep, build(SweepOptions, shared), argv, "train")
        return
    if options.dry_run:
        from ternary_vae.estimate import estimate

        print(to_yaml(to_dict(config)))
        print(estimate([config], options.device))
        return
    from studycore.devices import relaunch

    folder = _folder(verb, to_dict(config), options.output_dir, options.resume)
    # Every process of a relaunched run must get the same folder.
    again = [*([start] if start else []), *argv]
    relaunch(PACKAGE, _with_folder(verb, again, folder), options.num_processes, options.device)
    _train(folder, config, options, options.resume, ["ternary-vae", verb, *again], verb)


def _finetune_values(argv: list[str], start: str | None) -> tuple[dict[str, object], dict[str, object]]:
    """finetune's configuration: defaults < the checkpoint's architecture < the file < flags."""
    from studycore.configuration import check_types, find_config, parse, read_yaml, take_config, to_dict
    from ternary_vae.config import ArchitectureConfig, TrainConfig, TrainOptions

    path, rest = take_config(argv, PACKAGE)
    if start is None:
        parse([TrainConfig, TrainOptions], argv, "ternary-vae finetune", PACKAGE)  # prints the help
        raise AssertionError
    from studycore.checkpoints import load_checkpoint
    from ternary_vae.record import find_checkpoint

    stored = load_checkpoint(find_checkpoint(start)).config
    own = {f.name: stored[f.name] for f in dataclasses.fields(ArchitectureConfig) if f.name in stored}
    file = check_types(TrainConfig, read_yaml(path or find_config("finetune", PACKAGE)))
    flags, given = parse([TrainConfig, TrainOptions], rest, "ternary-vae finetune", PACKAGE, partial=True, file=False)
    for name in ("stages", "start"):
        if name in flags:
            raise UserError(
                f"--{name}: finetune trains the hierarchy stage from its checkpoint; leave it out, or use train"
            )
    return {**to_dict(TrainConfig()), **own, **file, **flags, "stages": "hierarchy", "start": start}, given


def _train(folder: Path, config: object, options: object, resume: bool, argv: list[str], verb: str) -> None:
    import os

    from ternary_vae.config import RunOptions, TrainConfig
    from ternary_vae.report import print_report
    from ternary_vae.train import train

    assert isinstance(config, TrainConfig) and isinstance(options, RunOptions)
    existing = resume and (folder / "manifest.json").exists()
    if existing and _finished(folder):
        return
    train(config, folder, options, argv, existing, verb=verb)
    if os.environ.get("RANK", "0") == "0":
        print_report(folder)


def sweep_verb(argv: list[str]) -> None:
    """`ternary-vae sweep`. Flags of `train` that are given change the base of every phase."""
    from studycore.configuration import build, check_types, parse, read_yaml, take_config
    from ternary_vae.config import ENCODING, SweepConfig, SweepOptions, TrainConfig

    path, rest = take_config(argv, PACKAGE)
    given, base = parse([SweepOptions, TrainConfig], rest, "ternary-vae sweep", PACKAGE, partial=True, file=False)
    if path is None:
        raise UserError("--config: a sweep needs a file or the name of a sweep configuration, such as quick")
    values = check_types(SweepConfig, read_yaml(path))
    options = build(SweepOptions, given)
    for name in ("stages", "start", "start_projections"):
        if name in base:
            raise UserError(f"--{name.replace('_', '-')}: a sweep's phases say how their runs start; leave it out")
    # What concerns coverage checkpoints goes to the runs that make them.
    of_coverage = {
        k: v for k, v in base.items() if k in ENCODING or (k.startswith("coverage_") and k != "coverage_weight")
    }
    values["coverage"] = {**values.get("coverage", {}), **of_coverage}
    values["base"] = {
        **values.get("base", {}),
        **{k: v for k, v in base.items() if k not in of_coverage or k in ENCODING},
    }
    if options.seeds is not None:
        values["seeds"] = options.seeds
    _sweep(build(SweepConfig, values), options, argv, "sweep")


def _sweep(sweep: object, options: object, argv: list[str], verb: str) -> None:
    from studycore.configuration import to_dict, to_yaml
    from ternary_vae.config import SweepConfig, SweepOptions
    from ternary_vae.sweep import plan_sweep, run_sweep

    assert isinstance(sweep, SweepConfig) and isinstance(options, SweepOptions)
    planned = plan_sweep(sweep)
    if options.dry_run:
        from ternary_vae.estimate import estimate

        print(to_yaml(to_dict(sweep)))
        for name, job in planned.items():
            print(f"{name}: {job.phase}")
        print(estimate([job.config for job in planned.values()], options.device, options.processes))
        return
    from ternary_vae.report import print_report

    folder = _folder("sweep", to_dict(sweep), options.output_dir, options.resume)
    if options.resume and (folder / "manifest.json").exists() and _finished(folder):
        return
    run_sweep(sweep, folder, options, ["ternary-vae", verb, *argv], options.resume)
    print_report(folder)


def evaluate_verb(argv: list[str]) -> None:
    """`ternary-vae evaluate CHECKPOINT`."""
    parser = Parser(prog="ternary-vae evaluate", description=STUDY.verbs["evaluate"][0])
    parser.add_argument("checkpoint", help="a run folder, or a checkpoint's own folder")
    parser.add_argument("--output", help="a JSON file for the metrics as well")
    options = parser.parse_args(argv)
    from ternary_vae.report import evaluate_command

    evaluate_command(options.checkpoint, options.output)


def inspect_verb(argv: list[str]) -> None:
    """`ternary-vae inspect CHECKPOINT`."""
    parser = Parser(prog="ternary-vae inspect", description=STUDY.verbs["inspect"][0])
    parser.add_argument("checkpoint", help="a run folder, a checkpoint's own folder, or a .pt file")
    options = parser.parse_args(argv)
    from ternary_vae.inspection import inspect_command

    inspect_command(options.checkpoint)


def import_verb(argv: list[str]) -> None:
    """`ternary-vae import FILE FOLDER [--key-map MAP.yaml] [architecture flags]`."""
    from studycore.configuration import build, parse
    from ternary_vae.config import ArchitectureConfig, ImportOptions

    classes: list[type] = [ImportOptions, ArchitectureConfig]
    if not argv or argv[0] in ("--help", "-h"):
        print(
            "usage: ternary-vae import FILE FOLDER [--key-map MAP.yaml] [architecture flags]\n\n"
            "FILE: a .pt file. FOLDER: the run folder to make. What the tensors do not show and the file's\n"
            "configuration does not say must be given as flags; those given win over the file's.\n"
        )
        parse(classes, ["--help"], "ternary-vae import", PACKAGE, partial=True, file=False)
        return
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        raise UserError("import: needs a .pt file and the folder to make; give both first, then the flags")
    given, flags = parse(classes, argv[2:], "ternary-vae import", PACKAGE, partial=True, file=False)
    from ternary_vae.foreign import import_file

    file, folder = Path(argv[0]), Path(argv[1])
    metrics = import_file(file, folder, flags, build(ImportOptions, given), ["ternary-vae", "import", *argv])
    shown = [
        f"{name} {metrics[name]:.6g}" for name in ("coverage", "hierarchy", "somers_d", "richness") if name in metrics
    ]
    print(f"{folder}: imported {file.name}: {', '.join(shown)}")


def resume_run(folder: Path) -> None:
    """`ternary-vae resume RUN`."""
    from studycore.runs import read_manifest
    from ternary_vae.config import RunOptions, SweepOptions
    from ternary_vae.record import read_config
    from ternary_vae.report import print_report
    from ternary_vae.sweep import read_sweep_config, run_sweep

    if _finished(folder):
        return
    manifest = read_manifest(folder)
    if manifest["verb"] == "import":
        raise UserError(f"{folder}: is an import that was cut off; remove the folder and import the file again")
    argv = list(manifest["argv"])
    device, threads = manifest["devices"]["device"].partition(":")[0], manifest["devices"]["threads"]
    if manifest["verb"] == "sweep":
        options = SweepOptions(**manifest.get("options", {}), device=device, resume=True)
        run_sweep(read_sweep_config(folder), folder, options, argv, resume=True)
        print_report(folder)
    else:
        _train(folder, read_config(folder), RunOptions(device=device, threads=threads), True, argv, manifest["verb"])


def _finished(folder: Path) -> bool:
    from studycore.runs import read_manifest

    if read_manifest(folder)["state"] != "done":
        return False
    print(f"{folder}: is finished; `ternary-vae report {folder}` shows it")
    return True


def _folder(verb: str, values: dict[str, object], output_dir: str | None, resume: bool) -> Path:
    """--output-dir; with --resume the newest unfinished run of this configuration, or the finished one."""
    from studycore.configuration import config_hash
    from studycore.runs import list_runs, new_folder, state_of

    if output_dir is not None:
        return Path(output_dir)
    root = Path("runs")
    if resume:
        same = [
            (folder, manifest)
            for folder, manifest in list_runs(root, STUDY.name)
            if manifest["verb"] == verb and manifest["configuration_hash"] == config_hash(values)
        ]
        open_ones = [folder for folder, manifest in same if state_of(folder, manifest) not in ("done", "running")]
        found = open_ones or [folder for folder, manifest in same if state_of(folder, manifest) == "done"]
        if not found:
            raise UserError(
                f"--resume: no earlier {verb} run of this configuration under {root}/{STUDY.name}; leave --resume out"
            )
        return found[-1]
    return new_folder(root, STUDY.name, verb, values)


def _with_folder(verb: str, argv: list[str], folder: Path) -> list[str]:
    kept = [item for item in argv if not item.replace("_", "-").startswith("--output-dir=")]
    return [verb, *kept, "--output-dir", str(folder)]


if __name__ == "__main__":
    sys.exit(main())
