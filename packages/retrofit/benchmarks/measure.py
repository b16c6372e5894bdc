"""`retrofit measure` against WeightWatcher on the same matrices, one thread.

    python benchmarks/measure.py [--layers 8] [--width 256] [--repeats 5]

The matrices are the 48 of TinyStories-8M's blocks (attention and FFN), drawn at random, in a list of nn.Linear. There
are three peers: float64 torch.linalg.svdvals; WeightWatcher's analyze() with plots, randomisation and the
Marchenko-Pastur fit off, which still fits a power law to every spectrum, since no argument turns that off; and the same
with its method for that fit replaced by nothing, which leaves the spectra and norms. WeightWatcher runs in an
environment of its own that is made for it, and is timed inside. Ratios are of medians of CPU seconds of one thread,
which a busy machine moves less than wall time.

Targets: singular values within 1e-6 of svdvals', and WeightWatcher's analyze(), fits included, at least 4 times as slow.
The exit code is 1 when one is missed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PEER = """
import json, sys, time
import torch
torch.set_num_threads(1)
import weightwatcher
model = torch.nn.Sequential(*[torch.nn.Linear(i, o, bias=False) for o, i in json.loads(sys.argv[1])])
for linear, weight in zip(model, torch.load(sys.argv[2], weights_only=True)):
    linear.weight.data = weight
watcher = weightwatcher.WeightWatcher(model=model)


def seconds():
    taken = []
    for _ in range(int(sys.argv[3]) + 1):
        began = time.process_time()
        rows = len(watcher.analyze(plot=False, randomize=False, mp_fit=False))
        taken.append(time.process_time() - began)
    return taken[1:], rows


fitted, rows = seconds()
watcher.apply_powerlaw = lambda *args, **kwargs: None
try:
    plain = seconds()[0]
except Exception as error:
    plain = repr(error)
print(json.dumps({"fitted": fitted, "plain": plain, "rows": rows, "version": weightwatcher.__version__}))
"""

VALUES_TARGET = 1e-6
RATIO_TARGET = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    import torch

    from retrofit.metrics.spectra import singular_values, weight_spectrum

    torch.set_num_threads(1)
    d = options.width
    shapes = [shape for _ in range(options.layers) for shape in [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]]
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) * 0.02 for shape in shapes]

    def ours() -> list:
        return [weight_spectrum(singular_values(w), max(w.shape)) for w in weights]

    def svd() -> list:
        return [torch.linalg.svdvals(w.double()) for w in weights]

    seconds = {}
    for name, act in (("retrofit", ours), ("float64 svdvals", svd)):
        act()
        taken = []
        for _ in range(options.repeats):
            began = time.process_time()
            act()
            taken.append(time.process_time() - began)
        seconds[name] = statistics.median(taken)
    worst = max(float((singular_values(w) / s - 1).abs().max()) for w, s in zip(weights, svd(), strict=True))
    print(f"{len(weights)} matrices of width {d}, 1 thread, medians of {options.repeats}")
    print(f"retrofit: {seconds['retrofit']:.3f} CPU s")
    print(f"singular values against float64 svdvals: {worst:.1e} relative at most")

    with tempfile.TemporaryDirectory() as folder:
        venv.create(f"{folder}/venv", with_pip=True)
        python = f"{folder}/venv/bin/python"
        # What is installed here comes first on the path after the peer's own, so torch is the same.
        here = next(p for p in sys.path if p.endswith("site-packages"))
        site = next(Path(folder, "venv").glob("lib/python*/site-packages"))
        pip = [python, "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "weightwatcher==0.7.7", "--no-deps"], check=True)
        (site / "retrofit-environment.pth").write_text(here + "\n")
        subprocess.run([*pip, "powerlaw", "pandas", "scikit-learn", "tabulate", "matplotlib-inline"], check=True)
        torch.save(weights, f"{folder}/weights.pt")
        arguments = [
            python,
            "-W",
            "ignore",
            "-c",
            PEER,
            json.dumps(shapes),
            f"{folder}/weights.pt",
            str(options.repeats),
        ]
        done = subprocess.run(arguments, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": folder})  # fmt: skip
    if done.returncode:
        sys.exit(f"WeightWatcher did not run: {done.stderr[-2000:]}")
    peer = json.loads(done.stdout.strip().splitlines()[-1])
    name = f"WeightWatcher {peer['version']}"
    seconds[f"{name}, power-law fits included"] = statistics.median(peer["fitted"])
    if isinstance(peer["plain"], str):
        print(f"{name} does not run without its fits: {peer['plain']}")
    else:
        seconds[f"{name}, without the fits"] = statistics.median(peer["plain"])
    print(f"{name} reads {peer['rows']} matrices")
    ratios = {key: value / seconds["retrofit"] for key, value in seconds.items() if key != "retrofit"}
    for key, ratio in ratios.items():
        print(f"{key}: {seconds[key]:.3f} CPU s, {ratio:.2f} x retrofit's")
    return judge(worst, ratios[f"{name}, power-law fits included"])


def judge(worst: float, ratio: float) -> int:
    """1 when a target is missed, after saying which."""
    met = {
        f"singular values {worst:.1e} from svdvals, at most {VALUES_TARGET:g}": worst <= VALUES_TARGET,
        f"WeightWatcher / retrofit {ratio:.2f}, at least {RATIO_TARGET:g}": ratio >= RATIO_TARGET,
    }
    for target, holds in met.items():
        print(f"{'met' if holds else 'MISSED'}: {target}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
