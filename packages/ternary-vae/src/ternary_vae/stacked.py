"""Runs of one shape as one batched model.

Where encoders and decoder are frozen, a run trains the radius net of one projection, on codes that never change: they
are computed once for all operations, and the nets of many runs are trained together, every weight with a leading run
dimension. A step is vmap of the single run's loss; batches, samples and learning rates are each run's own, so
that a run beside others is the run alone, but for rounding. Each keeps its own folder, rows and checkpoints, in the same
form as any run, and may go on alone. 20 runs on two cores train 5.7 times as fast as in processes with the same pass.

Shapes: S lanes with their ballast, U distinct (start, seed), N all operations, B a batch, D latent dimensions, L levels;
W stands for a weight's own dimensions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ternary_vae.bands import Targets
from ternary_vae.data import Operations
from ternary_vae.forward import noise
from ternary_vae.lanes import Lane
from ternary_vae.losses import RADIAL, Weights
from ternary_vae.metrics.evaluate import encode, reconstruct
from ternary_vae.metrics.radii import radius_metrics
from ternary_vae.model import Code, TernaryVAE, architecture_of, radii_of_share
from ternary_vae.optimizers import MOMENTS, StackedAdamW, per_run

VECTOR = 32
"""Most numbers at the end of a tensor that a vectorised CPU kernel computes otherwise, which rounds otherwise."""


class StackedRadii:
    """The radius nets of S runs: their weights and moments [S, W], steps, and radii of all operations.

    Behind the runs stand copies of the first one, as ballast: a vectorised kernel rounds the last few numbers of a tensor
    otherwise than the rest, and a run's numbers must not depend on its place among the others by a single bit.
    """

    def __init__(self, lanes: Sequence[Lane], operations: Operations):
        first = lanes[0]
        config, self.device, self.operations = first.config, first.run.device, operations
        self.v_N = operations.v_N.cpu()
        self.view, self.hyperbolic = config.view, config.radius == "hyperbolic"
        self.radial, self.sampled = RADIAL[config.loss], self.view in first.stage.sampled
        self.codes: dict[str | None, tuple[Code, float]] = {}
        size = len(operations)
        smallest = min(size, config.batch_size, size % config.batch_size or size)
        self.ballast = -(-VECTOR // smallest)
        filled = self._filled(lanes)
        stacked, _ = stack_module_state([self._net(lane) for lane in filled])
        weights = {name: w.detach().to(self.device).requires_grad_() for name, w in stacked.items()}
        self.dtype = first.model.projection.of(self.view).dtype
        states = {
            name: [lane.optimizer.state[self._net(lane).get_parameter(name)] for lane in filled] for name in weights
        }
        moments = {
            moment: {
                name: torch.stack([state.get(moment, torch.zeros_like(weights[name][0])) for state in states[name]])
                for name in weights
            }
            for moment in MOMENTS
        }
        self.optimizer = StackedAdamW(weights, moments, first.run.step)
        self.net = TernaryVAE(**architecture_of(config)).projection.of(self.view).radius_net.to("meta")
        self._index(lanes)
        targets = []
        for s, lane in enumerate(lanes):
            rho_N, norm_N = self.radii(s)
            targets.append(Targets.of(lane.config, lane.take_variances(rho_N, norm_N, self.v_N)))
        stacked_targets = zip(*self._filled(targets), strict=True)
        self.targets_S = Targets(*(torch.stack(list(values)).to(self.device) for values in stacked_targets))

    def _net(self, lane: Lane) -> torch.nn.Module:
        return lane.model.projection.of(self.view).radius_net

    def _filled(self, lanes: Sequence[Any]) -> list[Any]:
        return [*lanes, *[lanes[0]] * self.ballast]

    def _column(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _index(self, lanes: Sequence[Lane]) -> None:
        """What belongs to the runs that are left, and the codes of the distinct (start, seed) among them."""
        self.lanes = list(lanes)
        self.configs = [lane.config for lane in self._filled(lanes)]
        keys = [(config.start, config.seed) for config in self.configs]
        distinct = list(dict.fromkeys(keys))
        self.owners = [keys.index(key) for key in distinct]
        self.of_S = torch.tensor([distinct.index(key) for key in keys], device=self.device)
        codes = [self._code(lanes[owner])[0] for owner in self.owners]
        self.mu_UND = torch.stack([code.mu_ND for code in codes])
        self.std_UND = torch.stack([torch.exp(code.logvar_ND / 2) for code in codes])
        self.c_S = self._column([c.curvature for c in self.configs])
        self.max_S = self._column([c.max_radius for c in self.configs])
        self.optimizer.decay_S = self._column([c.weight_decay for c in self.configs])
        weights = zip(*map(Weights.of, self.configs), strict=True)
        self.weights_S = Weights(*(self._column(values) for values in weights))

    def _code(self, lane: Lane) -> tuple[Code, float]:
        """The codes of all operations, and the coverage: encoders and decoder are frozen, so once for each start."""
        if lane.config.start not in self.codes:
            code = encode(lane.model.eval(), self.operations, self.view)
            right_N = reconstruct(lane.model, self.operations)
            self.codes[lane.config.start] = code, float(right_N.double().mean())
        return self.codes[lane.config.start]

    def _loss(
        self, weights: dict[str, Tensor], z_BD: Tensor, v_B: Tensor, place_B: Tensor, targets: Targets,
        weighing: Weights, c: Tensor, max_radius: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of one run's loss, from its weights."""
        share_B = torch.sigmoid(functional_call(self.net, weights, z_BD).squeeze(-1))
        rho_B, norm_B = radii_of_share(share_B, c.to(share_B), max_radius.to(share_B), self.hyperbolic)
        return self.radial(rho_B if self.hyperbolic else norm_B, v_B, place_B, targets, weighing)

    def terms(self, positions: Sequence[Tensor], update: int, epoch: int) -> dict[str, Tensor]:
        """The losses' terms [runs], each run's on the operations at its own batch's positions."""
        positions_UB = torch.stack([positions[owner] for owner in self.owners]).to(self.device)
        u = torch.arange(len(self.owners), device=self.device)[:, None]
        z_UBD = self.mu_UND[u, positions_UB]
        if self.sampled:
            rows, stage = positions_UB.shape[1], self.lanes[0].stage.name
            drawn = [noise(self.configs[owner], stage, self.view, update, rows) for owner in self.owners]
            z_UBD = z_UBD + torch.stack(drawn).to(z_UBD) * self.std_UND[u, positions_UB]
        z_SBD = z_UBD.to(self.dtype)[self.of_S]
        v_SB, place_SB = self.operations.v_N[positions_UB][self.of_S], self.operations.place_N[positions_UB][self.of_S]
        parts: dict[str, Tensor] = vmap(self._loss)(
            self.optimizer.weights, z_SBD, v_SB, place_SB, self.targets_S, self.weights_S, self.c_S, self.max_S
        )
        return {name: part_S[: len(self.lanes)] for name, part_S in parts.items()}

    def backward(self, loss: Tensor) -> None:
        """The runs are independent, so the gradient of the sum of their losses is each run's own. A loss that is not finite
        shows at the next evaluation, and ends its own run alone."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_gradients(self, largest: float) -> None:
        """As torch.nn.utils.clip_grad_norm_ does it for a run alone."""
        gradients = [w.grad for w in self.optimizer.weights.values() if w.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients])
        factor_S = (largest / (norms.norm(dim=0) + 1e-6)).clamp_max(1)
        for g in gradients:
            g.mul_(per_run(factor_S, g))

    def set_rates(self, rates: Sequence[float]) -> None:
        """Each run's learning rate for the next update."""
        self.optimizer.lr_S = self._column(self._filled(rates))

    @torch.no_grad()
    def radii(self, s: int) -> tuple[Tensor, Tensor]:
        """Run s's hyperbolic distances and Euclidean norms of all operations, by the mean code [N], float64, on the CPU."""
        config, weights = self.configs[s], {name: w[s] for name, w in self.optimizer.weights.items()}
        z_ND = self.mu_UND[self.of_S[s]].to(self.dtype)
        share_N = torch.sigmoid(functional_call(self.net, weights, z_ND).squeeze(-1))
        largest = torch.as_tensor(config.max_radius, dtype=share_N.dtype, device=share_N.device)
        rho_N, norm_N = radii_of_share(share_N, config.curvature, largest, self.hyperbolic)
        return rho_N.double().cpu(), norm_N.double().cpu()

    def write_back(self, s: int) -> None:
        """Copies run s's part of the batched weights and moments into its own model and optimizer, which are what is saved."""
        lane, weights, moments = self.lanes[s], self.optimizer.weights, self.optimizer.moments
        net = self._net(lane)
        net.load_state_dict({name: w[s] for name, w in weights.items()})
        for name, parameter in net.named_parameters():
            if self.optimizer.updates > 0:  # before the first update AdamW has no state
                own = {moment: stacked[name][s].clone() for moment, stacked in moments.items()}
                lane.optimizer.state[parameter] = {"step": torch.tensor(float(self.optimizer.updates)), **own}

    def measure(self, s: int) -> dict[str, Any]:
        """Run s's metrics, by the batched weights. Nothing of the training changes."""
        rho_N, norm_N = self.radii(s)
        if not bool(rho_N.isfinite().all()):
            return {"hierarchy": float("nan")}
        return {
            "coverage": self._code(self.lanes[s])[1],
            **radius_metrics(self.v_N.numpy(), norm_N.numpy(), rho_N.numpy()),
        }

    def keep(self, left: Sequence[int]) -> None:
        """Repacks: only the runs at these places go on."""
        index = torch.tensor(self._filled(left), device=self.device)
        for stacked in (self.optimizer.weights, *self.optimizer.moments.values()):
            for name, values in stacked.items():
                stacked[name] = values.detach()[index].contiguous().requires_grad_(values.requires_grad)
        self.targets_S = Targets(*(part[index] for part in self.targets_S))
        self._index([self.lanes[s] for s in left])
