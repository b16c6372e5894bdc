"""The fit of y = x1 + x2 + x3."""

import time

import torch

from studycore.streams import generator


def points(config, number, *purpose):
    return torch.randn(number, 3, generator=generator(config.seed, *purpose))


def build(values):
    model = torch.nn.Linear(3, 1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, generator=generator(values["seed"], "init", name))
    return model


def replay(model, inputs):
    return {"output_y": model(inputs["input_x"])}


def loss_of(model, x):
    return (model(x)[:, 0] - x.sum(dim=1)).square().mean()


def evaluate(config, run, model):
    loss = loss_of(model, points(config, 64, "test")).item()
    run.log({"loss": loss})
    run.keep_best(-loss)
    return loss


def update(config, run, model, optimizer):
    x = points(config, 8, "batch", run.step)[run.rank :: run.world]
    run.backward(loss_of(model, x), "lr")
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(config.pause)


def train(config, run):
    run.begin(data={"points": f"seed {config.seed}"})
    model = run.model(build, replay, {"input_x": torch.eye(3)})
    sgd = torch.optim.SGD(model.parameters(), config.lr, config.momentum)
    forward, optimizer = run.accelerator.prepare(model, run.optimizer(sgd))
    for _ in run.steps(config.steps):
        if run.every(5):
            loss = evaluate(config, run, model)
        if run.saving(config.checkpoint_every):
            run.save()
        if run.ended():
            break
        update(config, run, forward, optimizer)
    run.results({"final_loss": loss}, {"weights": model.weight})
