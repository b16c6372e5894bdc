"""The explorer as a process of its own, and a browser that looks at it; for tests, benchmarks and screenshots."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

LACKS = ""
"""Why there can be no browser here; empty: there can."""
try:
    from playwright.sync_api import sync_playwright
except ModuleNotFoundError:
    LACKS = "playwright is not installed; the extra `test` brings it"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not LACKS and CHROMIUM is None:
    LACKS = "no chromium is installed; Debian's package `chromium` brings one"


@contextmanager
def explorer(folder, *flags):
    """The address of an explorer over the folder."""
    with subprocess.Popen(
        [sys.executable, "-m", "least_action.visualizer", str(folder), *flags],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            yield re.search(r"http://\S+", line)[0].rstrip("/")
        finally:
            process.terminate()


@contextmanager
def browser():
    """A headless Chromium."""
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # the sandbox refuses root
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield chromium
        finally:
            chromium.close()


def titles(page):
    """Of the figure's panels."""
    return [text for text in page.locator("#figure .annotation-text").all_text_contents() if text]


def lines(page):
    """Names of the figure's lines in its legend; that of phases is another."""
    return page.locator("#figure .legend .legendtext").all_text_contents()


def wait_for_figure(page, text=None):
    """Waits for a drawn figure, with the text in it."""
    found = page.locator("#figure .js-plotly-plot .main-svg").first
    found.wait_for(timeout=60_000)
    if text is not None:
        page.locator("#figure").get_by_text(text, exact=False).first.wait_for(timeout=30_000)
