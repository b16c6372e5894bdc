"""The fit: batches are functions of (seed, step), so that a checkpoint needs no random state."""

import time

import torch
from torch import nn

from studycore.checkpoints import load_latest
from studycore.streams import generator


class Line(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(width, 1), scale

    def forward(self, x):
        return self.scale * self.linear(x)[:, 0]


def build(values):
    model = Line(values["width"], values["scale"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(values["seed"], "init", name)))
    return model


def replay(model, inputs):
    return {"output_y": model(inputs["input_x"])}


def points(config, number, *purpose):
    return torch.randn(number, config.width, generator=generator(config.seed, *purpose))


def loss_of(model, x):
    return (model(x) - x.sum(dim=1)).square().mean()


class Lane:
    """One fit, index by index, so that several can be made together."""

    def __init__(self, config, run):
        self.config, self.run, self.test = config, run, points(config, 64, "test")
        run.begin(data={"points": f"seed {config.seed}"})
        inputs = {"input_x": torch.linspace(-1, 1, 4 * config.width).reshape(4, -1)}
        self.model = run.model(build, replay, inputs, start=self.weights_of_needed if run.needs else None)

    def weights_of_needed(self):
        (folder,), model = self.run.needs.values(), build(vars(self.config))
        model.load_state_dict(load_latest(folder / "checkpoints").model)
        return model

    def steps(self, stage):
        sgd = torch.optim.SGD(self.model.parameters(), self.config.lr, self.config.momentum)
        self.forward, self.optimizer = self.run.accelerator.prepare(self.model, self.run.optimizer(sgd))
        return self.run.steps(self.config.steps, f"stage {stage}", more=stage + 1 < self.config.stages)

    def evaluate_and_save(self):
        if self.run.every(self.config.eval_every):
            with torch.no_grad():
                self.loss = float(loss_of(self.model, self.test))
            self.run.log({"loss": self.loss})
            self.run.keep_best(-self.loss)
        if self.run.saving(self.config.checkpoint_every):
            self.run.save()

    def update(self):
        x = points(self.config, 8, "batch", self.run.step)[self.run.rank :: self.run.world]
        self.run.backward(loss_of(self.forward, x), "lr")
        self.optimizer.step()
        self.optimizer.zero_grad()
        time.sleep(self.config.pause)


def train(config, run):
    lane = Lane(config, run)
    for stage in range(config.stages):
        if run.has_passed(f"stage {stage}"):
            continue
        for _ in lane.steps(stage):
            lane.evaluate_and_save()
            if run.ended():
                break
            lane.update()
    run.results({"final_loss": lane.loss}, {"weights": lane.model.linear.weight})


def train_together(configs, runs):
    loops = {lane: lane.steps(0) for lane in map(Lane, configs, runs)}
    while loops:
        for lane, steps in loops.items():  # all save before one says that they stop
            next(steps)
            lane.evaluate_and_save()
        for lane in [lane for lane in loops if lane.run.ended()]:
            lane.run.results({"final_loss": lane.loss}, {"weights": lane.model.linear.weight})
            lane.run.finished()
            del loops[lane]
        for lane in list(loops):
            try:
                lane.update()
            except ValueError as error:
                lane.run.failed(str(error))
                del loops[lane]
