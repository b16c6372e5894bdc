"""`retrofit measure` against WeightWatcher on the same matrices, one thread.

    python benchmarks/measure.py [--layers 8] [--width 256] [--repeats 5]

The matrices are the 48 of TinyStories-8M's blocks (attention and FFN), drawn at random, in a list of nn.Linear. Both
compute every singular value; WeightWatcher, with fits and plots off, runs in an environment of its own that is made for
it, and is timed inside. The ratio is of medians of CPU seconds of one thread, which a busy machine moves less than
wall time. Singular values are compared with float64 svdvals.
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
taken = []
for _ in range(int(sys.argv[3]) + 1):
    began = time.process_time()
    details = watcher.analyze(plot=False, randomize=False, mp_fit=False)
    taken.append(time.process_time() - began)
print(json.dumps({"seconds": taken[1:], "rows": len(details), "version": weightwatcher.__version__}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    import torch

    from retrofit.spectra import singular_values, weight_spectrum

    torch.set_num_threads(1)
    d = options.width
    shapes = [shape for _ in range(options.layers) for shape in [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]]
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw) * 0.02 for shape in shapes]

    def ours() -> list:
        return [weight_spectrum(singular_values(w)) for w in weights]

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
    for name, value in seconds.items():
        print(f"{name}: {value:.3f} CPU s")
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
    other = statistics.median(peer["seconds"])
    print(f"WeightWatcher {peer['version']}: {other:.3f} CPU s for {peer['rows']} rows")
    print(f"WeightWatcher / retrofit: {other / seconds['retrofit']:.2f}")


if __name__ == "__main__":
    main()
