"""Figures: their bytes depend on the data alone."""

import os
import subprocess
import sys
from pathlib import Path

from studycore import figures
from studycore.figures import new_figure, save_figure
from studycore.statistics import Interval

CODE = """
import sys
from pathlib import Path
from studycore.figures import new_figure, save_figure
figure, axis = new_figure()
axis.plot([1, 2, 3], label="a < b & c")
axis.fill_between([0, 1], [0, 0], [1, 1], alpha=0.2)
axis.legend()
axis.set(xlabel="epoch")
save_figure(figure, Path(sys.argv[1]))
"""


def test_svg_bytes_are_the_same_in_every_process(tmp_path):
    for name, seed in (("a", "1"), ("b", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC{seed}"}
        path = tmp_path / name / "deep" / "figure.svg"
        subprocess.run([sys.executable, "-W", "error", "-c", CODE, str(path)], env=environment, check=True)
    one, other = (tmp_path / name / "deep" / "figure.svg" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    assert "a &lt; b &amp; c" in one.read_text()  # text stays text
    assert "<dc:date>" not in one.read_text()


def test_saving_closes_the_figure_and_png_works(tmp_path):
    from matplotlib import pyplot

    figure, axes = new_figure(4, 3, ncols=2)
    assert axes.shape == (2,)
    assert figure.get_size_inches().tolist() == [4, 3]
    path = save_figure(figure, tmp_path / "x.png")
    assert path == tmp_path / "x.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not pyplot.get_fignums()
    assert isinstance(path, Path)


def test_arms_are_dots_with_their_intervals_under_the_heading_of_their_group(monkeypatch, tmp_path):
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure) or path)
    series = {"best": [Interval(2, 1, 3, 5), 4.0, None], "end": [Interval(5, 4, 7, 5), None, Interval(6, 5.5, 8, 5)]}
    figures.plot_arms(
        ["a", "b", "c"],
        {"F1": series, "x": {"x": [1.0, 2.0, 3.0]}},
        tmp_path / "x",
        ["g", "g", "h"],
        {"F1": {"top": 9}},
    )
    left, right = drawn[0].axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["g", "a", "b", "h", "c"]
    bars = [(*line.get_xdata(), round(line.get_ydata()[0])) for line in left.lines if line.get_linewidth() == 1.2]
    assert bars == [(1, 3, 1), (4, 7, 1), (5.5, 8, 4)]
    dots = {line.get_marker(): list(line.get_xdata()) for line in left.lines if line.get_color() == figures.COLOURS[0]}
    assert (dots["o"], dots["x"]) == ([2], [4.0])
    assert {text.get_text() for text in left.get_legend().get_texts()} == {"best", "end", "top"}
    assert list(right.lines[0].get_xdata()) == [1.0, 2.0, 3.0]
    assert right.get_legend() is None
    for factor, scale in ((2.0, "linear"), (9.0, "log")):
        figures.plot_arms(["a", "b"], {"ratio": {"r": [Interval(1, 0.9, 1.1, 3), factor]}}, tmp_path / "x", ratios=True)
        assert drawn[-1].axes[0].get_xscale() == scale
    pyplot.close("all")
