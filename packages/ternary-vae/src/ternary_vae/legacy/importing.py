"""Bringing in a `.pt` file of the original study's layout, as a finished run whose checkpoint can be verified.

Such a file holds the weights under one of three names, a configuration spelled in three ways, and no probe. What the
tensors' shapes determine is taken from them and checked against what is declared; what no tensor shows (curvature,
max_radius, the share of dropout) must be declared, by the file or by flags. Every tensor goes through an explicit map of
names, and one too many or too few is an error.

The original study did not clamp log variances; ours are clamped, so that metrics of samples may differ from its own.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.configuration import build, check_types, read_yaml, to_dict
from studycore.errors import UserError
from studycore.files import sha256
from studycore.models import count_parameters
from studycore.study import Study
from ternary_vae.config import COMPONENTS, ArchitectureConfig, ImportOptions, TrainConfig
from ternary_vae.data import Operations
from ternary_vae.legacy.old_file import WRAPPERS, OldFile, read_old, unwrapped
from ternary_vae.metrics.evaluate import all_metrics
from ternary_vae.model import TernaryVAE, architecture_of, probe_inputs, replay_probe

Form = tuple[list[int], str]
"""Shape and type of a tensor."""
Forms = Mapping[str, Form]
KeyMap = Mapping[str, str | None]
SPELLINGS = {
    "dual_projection": "use_dual_projection",
    "projection_hidden_dim": "hidden_dim",
    "projection_layers": "n_projection_layers",
}
"""Other spellings of our fields in the file's configuration."""
NETS = ("direction_net", "radius_net", "manifold")
KEY_MAP = {
    **{p: p for x in "AB" for p in (f"encoder_{x}.encoder.", f"encoder_{x}.fc_mu.", f"encoder_{x}.fc_logvar.")},
    **{p: p for x in "AB" for net in NETS for p in (f"projection.proj_{x}.{net}.",)},
    # One projection for both encoders was no submodule of its own.
    **{f"projection.{net}.": f"projection.proj_A.{net}." for net in NETS},
    "decoder_A.decoder.": "decoder_A.decoder.",
    "controller.net.": "controller.net.",
}
"""Prefixes of the original layout's keys and ours."""
AVERAGED = "n_averaged"
"""How many models torch's averaging has seen, among the averaged weights."""
MANIFOLD = "manifold.isp_c"
"""How the name of geoopt's curvature ends: the inverse softplus of c."""
ISP_TOLERANCE = 1e-4
DROPOUTS = ("encoder_dropout", "projection_dropout")
ORIGINAL = {"radius": "euclidean", "encoder_dropout": 0.0}
"""What the original layout was where neither file nor flags say it; its encoders without LayerNorm had ReLU."""
PRECISIONS = {"dtype": ("encoder_", "decoder_", "controller."), "projection_dtype": ("projection.",)}
"""Field -> beginnings of the names of the tensors whose type it gives."""
LISTED = 3
"""Names that a sentence lists before it counts the rest."""


@dataclass(frozen=True)
class Imported:
    """A model of an old file."""

    config: TrainConfig
    model: TernaryVAE
    metrics: dict[str, Any]
    dropped: list[str]
    """Names of the file's tensors that it has no use for."""
    notes: list[str]
    """What was taken of the file, as sentences, where that is not plain."""


def bring_in(old: OldFile, flags: Mapping[str, Any], options: ImportOptions) -> Imported:
    """The model of an old file, measured: what `import` makes a run of, and what `inspect` promises.

    UserError says in one sentence what does not fit.
    """
    tensors, dropped, notes = rename(old, read_key_map(options.key_map))
    architecture = read_architecture(old, tensors, flags)
    manifold = check_manifold(old, tensors, architecture.curvature)
    kept = {key: tensor for key, tensor in tensors.items() if key not in manifold}
    with torch.device("meta"):
        wanted, held = forms_of(TernaryVAE(**architecture_of(architecture)).state_dict()), forms_of(kept)
    if wrong := apart(wanted, held):
        raise UserError(
            f"{old.path}: does not fit its architecture: {differences(wrong, wanted, held)}; mend flags or --key-map"
        )
    settings = {**architecture_of(architecture), "stages": "coverage", "view": options.view}
    config: TrainConfig = build(TrainConfig, settings)
    model = TernaryVAE(**architecture_of(config)).eval()
    model.load_state_dict(kept, strict=True)
    metrics = all_metrics(model, Operations.all(config.trits), config.view, config.seed)
    outputs = replay_probe(model, probe_inputs(config.trits))
    values = {**metrics, **{name.removeprefix("output_"): float(out.abs().max()) for name, out in outputs.items()}}
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        raise UserError(f"{old.path}: its weights make {listed(bad)} infinite or NaN; use an earlier checkpoint")
    if old.copies:
        notes.append(f"several copies of the model: the one under {old.taken} is taken, not {', '.join(old.copies)}")
    return Imported(config, model, metrics, [*dropped, *manifold], notes)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


# --------------------------------------------------------------------------------------------------------------- names
def read_key_map(path: str | None) -> dict[str, str | None]:
    """The prefixes of a user's file; none without one."""
    own = {} if path is None else read_yaml(Path(path))
    for prefix, ours in own.items():
        if not (ours is None or isinstance(ours, str)):
            raise UserError(f"{path}: {prefix}: {ours!r} is no prefix; give text, or null to drop what begins so")
    return own


def rename(old: OldFile, own: KeyMap) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors under our names, the file's names of those that are dropped, and notes on what was taken.

    The longest prefix that fits of the user's own map counts, else that of KEY_MAP, for which wrappers are left out.
    UserError for names that nothing fits, and where two tensors would get one name.
    """
    names: dict[str, str | None] = {}
    models: dict[str, dict[str, str]] = {}  # what stands before the names of a model's parts -> its keys, and the names
    for key in old.tensors:
        parts = key.split(".")
        place = next((i for i, part in enumerate(parts) if part in COMPONENTS), None)
        if prefix := max((prefix for prefix in own if key.startswith(prefix)), key=len, default=""):
            ours = own[prefix]
            names[key] = None if ours is None else ours + key.removeprefix(prefix)
        elif place is not None:
            name = unwrapped(".".join(parts[place:]))
            models.setdefault(".".join([*parts[:place], ""]), {})[key] = name
        elif key == AVERAGED:
            names[key] = None
    notes = []
    if models:
        plain = [before for before in models if not unwrapped(before).strip(".")]
        if not plain and not names:
            raise UserError(f"{old.path}: {explain_prefixes(list(models))}")
        taken = min(plain, key=len, default="")
        model = models.pop(taken, {})
        for key, name in model.items():
            if prefix := next((prefix for prefix in KEY_MAP if name.startswith(prefix)), ""):
                names[key] = KEY_MAP[prefix] + name.removeprefix(prefix)
        for before, copy in models.items():
            if set(copy.values()) <= set(model.values()):
                names |= dict.fromkeys(copy)
                notes.append(f"two models: the one whose names begin with '{taken}' is taken, not that with '{before}'")
        if wrappers := [wrapper for wrapper in WRAPPERS if any(wrapper in key.split(".") for key in model)]:
            notes.append(f"wrapped weights: {' and '.join(wrappers)} left out of the tensors' names")
    if unknown := [key for key in old.tensors if key not in names]:
        raise UserError(f"{old.path}: no name here for {listed(unknown)}; name them in a --key-map")
    renamed: dict[str, Tensor] = {}
    for key, ours in names.items():
        if ours in renamed:
            raise UserError(f"--key-map: {key} and another tensor would both be {ours}; let one of them go (null)")
        if ours is not None:
            renamed[ours] = old.tensors[key]
    return renamed, [key for key, ours in names.items() if ours is None], notes


def explain_prefixes(prefixes: list[str]) -> str:
    """The sentence on names that all have something before the names of the model's parts."""
    if len(prefixes) == 1:
        return f"'{prefixes[0]}' stands before the names of its tensors; give a --key-map with the line '{prefixes[0]}': ''"
    several = " and ".join(f"'{prefix}'" for prefix in prefixes)
    return (
        f"holds a model under each of {several}; give a --key-map with '' for the one to take, and null for the others"
    )


# -------------------------------------------------------------------------------------------------------- architecture
def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """Name to shape and type."""
    return {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def apart(wanted: Forms, held: Forms) -> list[str]:
    """Names in which two sets of tensors differ."""
    return [name for name in {**wanted, **held} if wanted.get(name) != held.get(name)]


def differences(names: Sequence[str], wanted: Forms, held: Forms) -> str:
    """What is the matter with the tensors of these names, as text."""
    kinds = {
        "missing": [name for name in names if name not in held],
        "left over": [name for name in names if name not in wanted],
        "otherwise": [
            f"{name} is {' '.join(map(str, held[name]))} and not {' '.join(map(str, wanted[name]))}"
            for name in names
            if name in held and name in wanted
        ],
    }
    return "; ".join(f"{len(of)} {kind} ({listed(of)})" for kind, of in kinds.items() if of)


def _layers(forms: Forms, net: str) -> list[tuple[int, list[int]]]:
    """Index and weight's shape of each layer with weights in a Sequential."""
    indices = [name.removeprefix(f"{net}.").removesuffix(".weight") for name in forms if name.startswith(f"{net}.")]
    layers = sorted(int(index) for index in indices if index.isdecimal())
    return [(index, forms[f"{net}.{index}.weight"][0]) for index in layers if f"{net}.{index}.weight" in forms]


def shown_fields(forms: Forms) -> dict[str, Any]:
    """The architecture's fields as far as tensors' names, shapes and types show them.

    A dropout shows as the index that it takes in a Sequential: its field is true or false, whether there is any (a net
    with nothing behind its dropout does not tell). Of several types in one part all are named.
    """
    shown: dict[str, Any] = {"use_controller": any(name.startswith("controller.") for name in forms)}
    for name, parts in PRECISIONS.items():
        types = {kind for key, (_, kind) in forms.items() if key.startswith(parts) and not key.endswith(MANIFOLD)}
        shown |= {name: " and ".join(sorted(types))} if types else {}
    if any(name.startswith("projection.proj_A.") for name in forms):
        shown["use_dual_projection"] = any(name.startswith("projection.proj_B.") for name in forms)
    encoder = _layers(forms, "encoder_A.encoder")
    linear, decoder, direction = (
        [(index, shape) for index, shape in layers if len(shape) == 2]
        for layers in (encoder, _layers(forms, "decoder_A.decoder"), _layers(forms, "projection.proj_A.direction_net"))
    )
    if linear:
        shown["trits"] = linear[0][1][1]
        shown["encoder_sizes"] = [shape[0] for _, shape in linear]
        shown["encoder_norm"] = len(encoder) > len(linear)
        if len(linear) > 1:
            shown["encoder_dropout"] = linear[1][0] - linear[0][0] > 2 + shown["encoder_norm"]
    if len(mean := forms.get("encoder_A.fc_mu.weight", ([], ""))[0]) == 2:
        shown["latent_dim"] = mean[0]
    if decoder:
        shown["decoder_sizes"] = [shape[0] for _, shape in decoder[:-1]]
    if len(direction) > 1:
        shown["hidden_dim"] = direction[0][1][0]
        shown["n_projection_layers"] = len(direction) - 1
        shown["projection_dropout"] = direction[1][0] - direction[0][0] > 3
    return shown


def declared_fields(old: OldFile) -> dict[str, Any]:
    """The architecture's fields that the file's configuration declares, under our names."""
    names = {f.name for f in dataclasses.fields(ArchitectureConfig)}
    declared: dict[str, Any] = {}
    for key, value in old.config.items():
        name = SPELLINGS.get(key, key)
        if name not in names:
            continue
        try:
            checked = check_types(ArchitectureConfig, {name: value})[name]
        except UserError as error:
            raise UserError(f"{old.path}: its configuration: {' '.join(str(error).split())}") from None
        if declared.setdefault(name, checked) != checked:
            raise UserError(
                f"{old.path}: its configuration gives {name} twice, as {declared[name]} and {checked}; give its flag"
            )
    return declared


def read_architecture(old: OldFile, tensors: Mapping[str, Tensor], flags: Mapping[str, Any]) -> ArchitectureConfig:
    """The architecture of a file whose tensors have our names: flags, else its configuration, agreeing with the tensors.

    UserError where a declaration contradicts the tensors, and where neither says what must be known.
    """
    said = {**declared_fields(old), **flags}
    values, shown = {**ORIGINAL, **said}, shown_fields(forms_of(tensors))
    for name, parts in PRECISIONS.items():
        if shown.setdefault(name, "lacking") not in ("float32", "float64"):
            raise UserError(f"{old.path}: {parts[0]}* are {shown[name]}; save them as float32 or float64 alone")
    for name, value in shown.items():
        source, flag = "the flag" if name in flags else "its configuration", f"--{name.replace('_', '-')}"
        wrong = ""
        if name not in DROPOUTS:
            if values.setdefault(name, value) != value:
                wrong = f"{source} says {values[name]} and the tensors say {value}; give {flag} {value} if the tensors are right"
        elif value and name not in said:
            wrong = f"the tensors' indices show dropout, of a share that nothing says; give {flag}, such as 0.1"
        elif bool(values.get(name, value)) != value:
            what, mend = ("dropout", "above 0, such as 0.1") if value else ("none", "0")
            wrong = f"{source} says {values[name]} and the tensors' indices show {what}; give {flag} {mend}"
        if wrong:
            raise UserError(f"{old.path}: {name}: {wrong}")
    if not values.get("encoder_norm"):
        values.setdefault("activation", "relu")
    if lacking := [name for name in ("curvature", "max_radius", "activation") if name not in values]:
        flags_to_give = " and ".join(f"--{name.replace('_', '-')}" for name in lacking)
        raise UserError(
            f"{old.path}: {', '.join(lacking)}: shown in no tensor and not said by its configuration; give {flags_to_give}"
        )
    try:
        return ArchitectureConfig(**values)
    except ValueError as error:
        raise UserError(f"{old.path}: {error}") from None


def check_manifold(old: OldFile, tensors: Mapping[str, Tensor], curvature: float) -> list[str]:
    """Keys of geoopt's curvature, after checking each against the declared one."""
    keys = [key for key in tensors if key.endswith(MANIFOLD)]
    for key in keys:
        c = float(torch.nn.functional.softplus(tensors[key].double()).mean())
        if not abs(c - curvature) <= ISP_TOLERANCE:
            raise UserError(
                f"{old.path}: curvature: {curvature} is declared and {key} says {c:.6g}; give --curvature {c:.6g} if the "
                "tensor is right"
            )
    return keys


# --------------------------------------------------------------------------------------------------------- the new run
def import_file(
    study: Study, file: Path, folder: Path, flags: Mapping[str, Any], options: ImportOptions, argv: list[str]
) -> Imported:
    """Makes the finished run `folder` of an old file."""
    from studycore.checkpoints import save_checkpoint
    from studycore.claims import as_stored
    from studycore.devices import describe
    from studycore.execution import closing
    from studycore.report import write_results
    from studycore.run_folder import create_run
    from ternary_vae.claims import claims
    from ternary_vae.metrics.final import baselines

    old = read_old(file)
    imported = bring_in(old, flags, options)
    config, model, metrics, inputs = (
        imported.config,
        imported.model,
        imported.metrics,
        probe_inputs(imported.config.trits),
    )
    run = create_run(
        folder, study=study, verb="import", config=to_dict(config), argv=argv, seeds=[config.seed], devices=describe("cpu"),
        data={"file": sha256(file)}, claims=[as_stored(claim) for claim in claims("import", config)], parameters=count_parameters(model),
        imported={
            "file": file.name, "sha256": sha256(file), "epoch": old.epoch, "taken": old.taken, "dropped": imported.dropped,
            "notes": imported.notes,
        },
    )  # fmt: skip
    with closing(run):
        run.metrics.append({"step": 0, "stage": "coverage", "epoch": 0, **metrics})
        save_checkpoint(
            folder / "checkpoints", 0, config=to_dict(config), model=model.state_dict(), optimizer={}, best=True,
            state={"loop": "coverage", "index": 0, "rows": 1, "best": metrics["coverage"], "state": {"metrics": metrics}},
            probe={**inputs, **replay_probe(model, inputs)},
        )  # fmt: skip
        run.metrics.compact()
        write_results(folder, study.name, "import", {**metrics, "baselines": baselines(config)}, [])
        run.finish("done", f"imported {file.name}")
    return imported
