"""A toy study that uses studycore as the studies do: `toy.py train FOLDER [SECONDS A STEP]`.

It fits a line: y = scale * w x, by gradient descent with momentum on points drawn for each step.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from studycore.checkpoints import load_latest, rebuild, save_checkpoint
from studycore.cli import Study, main
from studycore.errors import Stopped
from studycore.runs import create_run, open_run, read_manifest, recording
from studycore.stopping import stop_on_signals
from studycore.streams import generator

CONFIG = {"steps": 200, "lr": 0.05, "scale": 2.0, "width": 3, "seed": 1}


class Line(nn.Module):
    """`scale` is a setting that no tensor shows."""

    def __init__(self, width, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(width, 1), scale

    def forward(self, x):
        return self.scale * self.linear(x)


def build(config):
    model = Line(config["width"], config["scale"])
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(config["seed"], "init", name)))
    return model


def replay(model, inputs):
    return {"output_y": model(inputs["input_x"])}


def save(root, step, config, model, momenta, state, **kwargs):
    inputs = {"input_x": torch.linspace(-1, 1, 4 * config["width"]).reshape(4, -1)}
    with torch.no_grad():
        probe = inputs | replay(model, inputs)
    tensors = {"model": model.state_dict(), "optimizer": momenta, "probe": probe}
    return save_checkpoint(root, step, config=config, state=state, **tensors, **kwargs)


def train(folder, pause=0.0, config=CONFIG):
    """Trains in the new `folder`, or goes on with the one there."""
    if (folder / "manifest.json").exists():
        run = open_run(folder)
        run.update(state="running")
    else:
        devices = {"device": "cpu", "threads": 1, "world_size": 1}
        run = create_run(
            folder, study="studycore", verb="train", config=config, argv=sys.argv, seeds=[config["seed"]],
            devices=devices, data={}, source=Path(__file__),
        )  # fmt: skip
    checkpoint = load_latest(folder / "checkpoints")
    model = rebuild(checkpoint, build, replay, config) if checkpoint else build(config)
    first, best = (checkpoint.step, checkpoint.state["best"]) if checkpoint else (0, 1e9)
    named = dict(model.named_parameters())
    momenta = checkpoint.optimizer if checkpoint else {name: torch.zeros_like(p) for name, p in named.items()}
    run.metrics.rewind(first - 1)
    with stop_on_signals() as stop, recording(run):
        for step in range(first, config["steps"] + 1):
            x = torch.randn(8, config["width"], generator=generator(config["seed"], "batch", step))
            loss = (model(x)[:, 0] - x.sum(dim=1)).square().mean()
            run.metrics.append({"step": step, "loss": loss.item()})
            last = step == config["steps"]
            if last or stop or (step > first and step % 20 == 0):
                better, best = loss.item() < best, min(best, loss.item())
                save(folder / "checkpoints", step, config, model, momenta, {"best": best}, best=better)
                run.metrics.write_part()
            if last or stop:
                break
            time.sleep(pause)
            for (name, parameter), gradient in zip(
                named.items(), torch.autograd.grad(loss, list(named.values())), strict=True
            ):
                momenta[name] = 0.9 * momenta[name] + gradient
                with torch.no_grad():
                    parameter -= config["lr"] * momenta[name]
        if not last:
            run.finish("stopped", f"stopped by {stop.name} at step {step}")
            raise Stopped(f"stopped by {stop.name} at step {step} and saved")
        run.metrics.compact()
        run.finish("done", "reached the last step")


def train_verb(argv):
    train(Path(argv[0]), float(argv[1]) if len(argv) > 1 else 0.0)


def resume_run(folder):
    if read_manifest(folder)["state"] == "done":
        print("is finished")
        return
    train(folder)


def report_run(folder):
    print(f"report of {folder}")


def lost_checks():
    return [("data found", False, "fetch it")]


STUDY = Study(
    name="studycore",
    distribution="studycore",
    question="Does a line fit?",
    verbs={
        "train": ("fit", "toy:train_verb"),
        "sweep": ("run jobs", "toy_jobs:sweep_verb"),
        "fail": ("fail", "toy_jobs:fail_verb"),
    },
    report="toy:report_run",
    resume="toy:resume_run",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
