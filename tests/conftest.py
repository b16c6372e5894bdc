"""Shared by the tests of the wheels: all packages built, installed in a new environment, and used from outside the repository.

Editable installs hide files that a wheel lacks and let the repository's folders be imported; there nothing of it is near.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in [ROOT / "shared/pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")])


class Installed:
    """An environment with all wheels in it, and a folder outside the repository to work from."""

    def __init__(self, wheels: Path, outside: Path):
        self.outside = outside
        self.bin = outside / "venv" / "bin"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        self.run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, *FOLDERS)
        self.wheels = sorted(wheels.glob("*.whl"))
        self.run(sys.executable, "-m", "venv", outside / "venv")
        pip[0] = self.bin / "python"
        constraints = ("--constraint", ROOT / "constraints.txt")
        self.run(*pip, "install", "--quiet", "--no-compile", *constraints, *self.wheels)
        self.run(*pip, "check")

    def run(self, *command: str | Path) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.outside,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        return done.stdout

    def python(self, code: str, *arguments: str) -> str:
        return self.run(self.bin / "python", "-I", "-c", code, *arguments).strip()


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    assert ROOT not in outside.parents
    return Installed(tmp_path_factory.mktemp("wheels"), outside)
