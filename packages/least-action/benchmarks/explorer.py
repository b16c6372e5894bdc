"""How long until the explorer shows a sweep of 200 runs; with a folder of runs, makes screenshots instead.

python benchmarks/explorer.py                    # prints seconds from opening the page to the first figure

The pictures of the README, from the package's folder:
least-action sweep --config benchmarks/arms.yaml --output-dir pictured/arms
least-action sweep --config benchmarks/fractions.yaml --output-dir pictured/fractions
python benchmarks/explorer.py pictured figures   # a PNG per section
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from in_browser import LACKS, browser, explorer, wait_for_figure

from least_action.visualizer.view import SECTIONS

RUNS, ROWS, TIMES = 200, 400, 5


def first_view() -> None:
    from analysis import fabricate

    with tempfile.TemporaryDirectory() as folder:
        fabricate(Path(folder), RUNS, ROWS)
        began = time.perf_counter()
        with explorer(folder) as address, browser() as chromium:
            print(f"{RUNS} runs of {ROWS} rows; the server is up after {time.perf_counter() - began:.1f} s")
            seconds = []
            for _ in range(TIMES):
                page = chromium.new_page(viewport={"width": 1280, "height": 1100})
                began = time.perf_counter()
                page.goto(address)
                wait_for_figure(page)
                seconds.append(time.perf_counter() - began)
                page.close()
        shown = ", ".join(f"{x:.2f}" for x in seconds)
        print(f"first view with all of them: median {statistics.median(seconds):.2f} s of {shown} (goal: under 3)")


def screenshots(runs: Path, target: Path) -> None:
    """The whole page once, of the other sections the figure."""
    target.mkdir(exist_ok=True)
    dense, one = {"sweep": "arms", "where": "arm <> 'sphere_routed'"}, {"sweep": "arms", "where": "arm = 'sphere'"}
    views = dict.fromkeys(SECTIONS, dense) | {
        "Routing": {"sweep": "arms", "where": "arm = 'sphere_routed'"},
        "Time to grok": {"sweep": "fractions"},
        "Checkpoints": one,
    }
    with explorer(runs) as address, browser() as chromium:
        for section, query in views.items():
            page = chromium.new_page(viewport={"width": 1240, "height": 1000})
            page.goto(f"{address}/?{urlencode({'section': section} | query)}")
            wait_for_figure(page)
            page.wait_for_timeout(1500)
            path = target / f"explorer-{section.lower().replace(' ', '-')}.png"
            if section == "Training":
                page.screenshot(path=path, full_page=True)
            else:
                page.locator("#figure").screenshot(path=path)
            page.close()
    reduce(target)


def reduce(folder: Path) -> None:
    """128 colours are enough for a page, and keep each PNG under 120 kB."""
    from PIL import Image

    for path in folder.glob("explorer-*.png"):
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if LACKS:
        print(f"The explorer is not looked at: {LACKS}")
    elif len(sys.argv) == 3:
        screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        first_view()
