"""The verb `evaluate`: every metric of a verified checkpoint beside its baselines. Heavy imports stay inside."""

import dataclasses
from pathlib import Path

from studycore.cli import Parser
from studycore.files import check_output_file, write_json
from studycore.report import table_text

SUMMARY = "every metric of a checkpoint, beside its baselines"


def evaluate_command(argv: list[str]) -> None:
    """`evaluate CHECKPOINT [--output FILE]`."""
    parser = Parser(prog="ternary-vae evaluate", description=SUMMARY)
    parser.add_argument("checkpoint", help="a run folder, or a checkpoint's own folder")
    parser.add_argument(
        "--output", help="a JSON file for the metrics as well; an earlier one is replaced, any other file refused"
    )
    options = parser.parse_args(argv)
    evaluate(options.checkpoint, options.output)


def evaluate(name: str, output: str | None) -> None:
    """Prints the metrics of the checkpoint of a name, and writes them as JSON into the file `output`, where asked."""
    import torch

    from ternary_vae.checkpoint import load_model
    from ternary_vae.data import Operations, training_indices
    from ternary_vae.metric_table import metric_table
    from ternary_vae.metrics.final import baselines, run_metrics

    if output is not None:
        check_output_file(output, ours=("checkpoint", "baselines"))
    checkpoint, config, model = load_model(name)
    seen_N = torch.zeros(3**config.trits, dtype=torch.bool)
    seen_N[training_indices(config.trits, config.train_fraction, config.seed)] = True
    metrics = run_metrics(config, model, Operations.all(config.trits, config.shuffle_seed), seen_N, [])
    beside = baselines(config)
    geometry = f"3^{config.trits} operations, curvature {config.curvature:g}, max_radius {config.max_radius:g}"
    print(f"{checkpoint.path}: {geometry}")
    table = metric_table(metrics, beside, config.orders_radii)
    width = max(len(row[-1]) for row in table.rows)  # meanings stand left
    print(table_text(dataclasses.replace(table, rows=[(*row[:-1], row[-1].ljust(width)) for row in table.rows])))
    if output is not None:
        write_json(Path(output), {"checkpoint": str(checkpoint.path), **metrics, "baselines": beside})
        print(f"written: {output}")
