"""How long until the explorer shows a sweep of 200 runs; with a folder of runs, makes screenshots instead.

python benchmarks/explorer.py                    # prints seconds from opening the page to the first figure
python benchmarks/explorer.py RUNS figures       # a PNG per section of the runs in RUNS
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from in_browser import LACKS, browser, explorer, wait_for_figure

from least_action.visualizer.view import EACH, SECTIONS

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
    target.mkdir(exist_ok=True)
    more = {
        "Training": {"lines": EACH, "smooth": 5},
        "Routing": {"where": "model_type = 'routed_transformer'"},
        "Checkpoints": {"where": "model_type = 'routed_transformer'"},
    }
    with explorer(runs) as address, browser() as chromium:
        for section in SECTIONS:
            page = chromium.new_page(viewport={"width": 1180, "height": 1000})
            query = {"section": section} | more.get(section, {})
            page.goto(f"{address}/?{urlencode(query)}")
            wait_for_figure(page)
            page.wait_for_timeout(1500)
            page.screenshot(path=target / f"explorer-{section.lower().replace(' ', '-')}.png", full_page=True)
            page.close()
    reduce(target)


def reduce(folder: Path) -> None:
    """128 colours are enough for a page, and keep each PNG under 100 kB."""
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
