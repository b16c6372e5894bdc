"""How far the 3-adic tree bends in flat and in hyperbolic space of equal dimension.

The operations are the leaves of a ternary tree of depth m; two whose indices differ by a multiple of 3^(m-h) but of no higher
power meet h edges up, so their path is 2h edges long. An embedding gives every pair a ratio of its distance to its path.

Worst case, the largest ratio over the smallest of all pairs (1 is perfect):
flat, bound     no embedding does better: balls around 3^h leaves are disjoint and lie in a ball of the radius that Jung's
                theorem gives their diameter. (3^(h/D) - 1) / (2h sqrt(D / (2D + 2))), the largest over h, at least 1
drawn, radius r the tree drawn with equal angles (Sarkar 2011) in curvature -1, its leaves about r from the root: 3.66 is the
                model's largest radius, 37 the farthest that float64 tells from the boundary of the Poincare ball. It looks the
                same from every node of a height, so that pairs are taken once for each height, in the frame of the node where
                they meet, where nothing cancels

On average, exp of the mean distance of a ratio's logarithm from their mean, over random pairs of every height alike:
flat, curved    the best that gradient descent finds from one start, the curved one within the model's largest radius

`python benchmarks/distortion.py [--trits 9]`
"""

import argparse
import math
import time

import torch
from torch import Tensor

DIMENSIONS = (2, 3, 4, 8, 16)
RADII = (3.66, 10.0, 37.0)
STEPS, PAIRS, MEASURED = 400, 1024, 100_000


def bound(trits: int, dimensions: int) -> float:
    """Least distortion of any Euclidean embedding by packing."""
    jung = math.sqrt(dimensions / (2 * dimensions + 2))
    return max(1.0, *((3 ** (h / dimensions) - 1) / (2 * h * jung) for h in range(1, trits + 1)))


def directions(dimensions: int) -> Tensor:
    """Four unit directions, from a node to its parent and to its children, as far apart as they can be [4, D]."""
    if dimensions == 2:
        angle = torch.arange(4, dtype=torch.float64) * math.pi / 2
        return torch.stack([angle.cos(), angle.sin()], 1)
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64) / math.sqrt(3)
    return torch.cat([corners, torch.zeros(4, dimensions - 3, dtype=torch.float64)], 1)


def step(direction_D: Tensor, length: float) -> Tensor:
    """The hyperboloid's isometry [1 + D, 1 + D] that moves the origin this far in a direction."""
    d = len(direction_D)
    boost = torch.eye(d + 1, dtype=torch.float64)
    boost[0, 0] = math.cosh(length)
    boost[0, 1:] = boost[1:, 0] = math.sinh(length) * direction_D
    boost[1:, 1:] += (math.cosh(length) - 1) * torch.outer(direction_D, direction_D)
    return boost


def turn(to_D: Tensor, from_D: Tensor) -> Tensor:
    """A reflection [1 + D, 1 + D] that brings one unit direction onto another."""
    d = len(to_D)
    mirror = torch.eye(d + 1, dtype=torch.float64)
    if float((apart_D := from_D - to_D).norm()) > 1e-12:
        mirror[1:, 1:] -= 2 * torch.outer(apart_D, apart_D) / apart_D.square().sum()
    return mirror


def drawn(trits: int, dimensions: int, edge: float) -> list[list[Tensor]]:
    """Height h -> the leaves [3^(h-1), 1 + D] below each of the three children of a node, as it sees them."""
    parent, *children = directions(dimensions)
    # From a child its parent lies where a step there came from: the mirror brings the child's own parent direction there.
    moves = [step(child, edge) @ turn(-child, parent) for child in children]
    leaves = torch.zeros(1, dimensions + 1, dtype=torch.float64)
    leaves[0, 0] = 1.0
    heights = []
    for _ in range(trits):
        below = [leaves @ move.T for move in moves]
        heights.append(below)
        leaves = torch.cat(below)
    return heights


def of_drawn(heights: list[list[Tensor]]) -> tuple[float, float]:
    """Smallest and largest ratio of distance to path."""
    ratios = []
    for h, below in enumerate(heights, 1):
        for a in range(3):
            for b in range(a):
                for part in below[a].split(2048):
                    cosh = part[:, :1] * below[b][:, 0] - part[:, 1:] @ below[b][:, 1:].T
                    ratios += [float(torch.acosh(value)) / (2 * h) for value in (cosh.min(), cosh.max())]
    return min(ratios), max(ratios)


def distances(x_ND: Tensor, y_ND: Tensor, curved: bool) -> Tensor:
    """Of points that are given by their tangent vectors at the origin [N]."""
    if not curved:
        return (x_ND - y_ND).norm(dim=1)
    (r, u), (s, w) = ((p.norm(dim=1).clamp_min(1e-9), p) for p in (x_ND, y_ND))
    half = ((u / r[:, None] - w / s[:, None]).square().sum(1) / 4).clamp_min(1e-18)
    # sinh^2(d/2) = sinh^2((r - s)/2) + sinh r sinh s sin^2(angle/2): exact for points close together.
    return 2 * torch.asinh((torch.sinh((r - s) / 2).square() + torch.sinh(r) * torch.sinh(s) * half).sqrt())


def pairs(trits: int, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """As many random pairs of leaves for each height where they meet, and that height; leaves of a subtree stand together."""
    first, second, heights = [], [], []
    for h in range(1, trits + 1):
        i = torch.randint(3**trits, (count,), generator=draw)
        child = i // 3 ** (h - 1) % 3
        other = (child + torch.randint(1, 3, (count,), generator=draw)) % 3
        j = i // 3**h * 3**h + other * 3 ** (h - 1) + torch.randint(3 ** (h - 1), (count,), generator=draw)
        first.append(i), second.append(j), heights.append(torch.full((count,), h))
    return torch.cat(first), torch.cat(second), torch.cat(heights)


def descend(x_ND: Tensor, trits: int, curved: bool) -> Tensor:
    """Gradient descent on the variance of the logarithms of the ratios, over random pairs of every height."""
    x_ND = x_ND.clone().requires_grad_()
    draw = torch.Generator().manual_seed(0)
    siblings = x_ND.detach().unflatten(0, (-1, 3))
    rate = 0.1 * float((siblings[:, 0] - siblings[:, 1]).norm(dim=1).mean())
    adam = torch.optim.Adam([x_ND], lr=rate)
    for update in range(STEPS):
        adam.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * update / STEPS)) / 2
        i, j, h = pairs(trits, PAIRS, draw)
        logs = (distances(x_ND[i], x_ND[j], curved) / (2 * h)).log()
        loss = logs.var()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if curved:  # no farther out than the model's points can be
            with torch.no_grad():
                x_ND *= (RADII[0] / x_ND.norm(dim=1, keepdim=True)).clamp_max(1)
    return x_ND.detach()


def average(x_ND: Tensor, trits: int, curved: bool) -> float:
    """exp of the mean distance of a ratio's logarithm from their mean."""
    i, j, h = pairs(trits, MEASURED, torch.Generator().manual_seed(1))
    logs = (distances(x_ND[i], x_ND[j], curved) / (2 * h)).log()
    return math.exp(float((logs - logs.mean()).abs().mean()))


def tiles(trits: int, dimensions: int) -> Tensor:
    """Leaves [N, D] as sums of a triangle's corners that grow from edge to edge by the D-th root of 3, as equal volumes for
    all leaves need it (at least by 1.3), and turn by a right angle through the dimensions in turn; the farthest at 1."""
    growth = max(3 ** (1 / dimensions), 1.3)
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    x_ND = torch.zeros(1, dimensions, dtype=torch.float64)
    for h in range(trits):
        corners = torch.zeros(3, dimensions, dtype=torch.float64)
        first = 2 * h % dimensions if dimensions > 3 else h % dimensions
        corners[:, first], corners[:, (first + 1) % dimensions] = angle.cos(), angle.sin()
        x_ND = (growth**h * corners[:, None] + x_ND).flatten(0, 1)
    return x_ND / x_ND.norm(dim=1).max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trits", type=int, default=9)
    trits = parser.parse_args().trits
    torch.set_num_threads(1)
    heads = ["flat, bound", *(f"drawn, radius {r:g}" for r in RADII), "flat, average", "curved, average", "seconds"]
    print(f"3^{trits} leaves; ratios of distances to paths\n| dimensions | {' | '.join(heads)} |")
    for dimensions in DIMENSIONS:
        began, cells = time.perf_counter(), [bound(trits, dimensions)]
        for radius in RADII:
            low, high = of_drawn(drawn(trits, dimensions, radius / trits))
            cells.append(high / low)
        start = RADII[0] * tiles(trits, dimensions)
        cells += [average(descend(start, trits, curved), trits, curved) for curved in (False, True)]
        shown = " | ".join(f"{cell:.4g}" for cell in cells)
        print(f"| {dimensions} | {shown} | {time.perf_counter() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
