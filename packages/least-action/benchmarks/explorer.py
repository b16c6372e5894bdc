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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from in_browser import LACKS, browser, explorer, wait_for_figure

from least_action.visualizer.view import SECTIONS

RUNS, ROWS, TIMES = 200, 400, 5


def first_view() -> None:
    """The explorer with all runs, by turns with a page of Gradio's that holds one line: what no explorer can be below."""
    from analysis import fabricate

    with tempfile.TemporaryDirectory() as folder:
        fabricate(Path(folder), RUNS, ROWS)
        began = time.perf_counter()
        with explorer(folder) as address, browser() as chromium, one_line() as floor:
            print(f"{RUNS} runs of {ROWS} rows; the server is up after {time.perf_counter() - began:.1f} s")
            seconds: dict[str, list[float]] = {address: [], floor: []}
            for _ in range(TIMES):
                for where, times in seconds.items():
                    page = chromium.new_page(viewport={"width": 1280, "height": 1100})
                    began = time.perf_counter()
                    page.goto(where)
                    wait_for_figure(page)
                    times.append(time.perf_counter() - began)
                    page.close()
        ours, least = (statistics.median(times) for times in seconds.values())
        print(f"first view with all of them: median {ours:.2f} s of {shown(seconds[address])} (goal: under 3)")
        print(f"a page of Gradio's with one line: median {least:.2f} s of {shown(seconds[floor])}")
        print(f"ratio of the medians: {ours / least:.2f}")


def shown(seconds: list[float]) -> str:
    return ", ".join(f"{x:.2f}" for x in seconds)


@contextmanager
def one_line() -> Iterator[str]:
    """The address of a page with a figure of one line."""
    import gradio as gr
    import plotly.graph_objects as go

    with gr.Blocks(analytics_enabled=False) as page:
        gr.Plot(go.Figure(go.Scatter(y=[1, 2])), elem_id="figure")
    fonts = {"font": ["system-ui"], "font_mono": ["monospace"]}
    _, address, _ = page.launch(
        quiet=True, prevent_thread_lock=True, ssr_mode=False, theme=gr.themes.Default(**fonts), footer_links=[]
    )
    try:
        yield address
    finally:
        page.close()


def screenshots(runs: Path, target: Path) -> None:
    """The whole page once, of the other sections the figure."""
    target.mkdir(exist_ok=True)
    # The phases that are shaded are those of the first run named: one with a long plateau.
    runs_shown = [f"arms/sphere_s{seed}" for seed in (1, 0, 2)] + [f"arms/sphere_no_decay_s{i}" for i in range(3)]
    dense = {"sweep": "arms", "where": "arm <> 'sphere_routed'", "runs": runs_shown}
    views = dict.fromkeys(SECTIONS, dense) | {
        # On the sphere a representation has the norm 1, and all weights decay.
        "Model properties": dense | {"metrics": ["weight_norm", "logit_scale"]},
        "Routing": {"sweep": "arms", "where": "arm = 'sphere_routed'"},
        "Time to 0.99": {"sweep": "fractions"},
        "Checkpoints": {"sweep": "arms", "where": "arm = 'sphere'"},
    }
    with explorer(runs) as address, browser() as chromium:
        for section, query in views.items():
            page = chromium.new_page(viewport={"width": 1240, "height": 1000})
            page.goto(f"{address}/?{urlencode({'section': section} | query, doseq=True)}")
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
    """256 colours are enough for a page, and keep each PNG under 120 kB."""
    from PIL import Image

    for path in folder.glob("explorer-*.png"):
        Image.open(path).convert("RGB").quantize(256, kmeans=3).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if LACKS:
        print(f"The explorer is not looked at: {LACKS}")
    elif len(sys.argv) == 3:
        screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        first_view()
