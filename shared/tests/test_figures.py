"""Figures: their bytes depend on the data alone."""

import os
import subprocess
import sys
from pathlib import Path

from studycore.figures import new_figure, save_figure

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
