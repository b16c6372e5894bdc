"""The wheels of all packages together: whole, and of use outside the repository."""

import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import FOLDERS

PROJECTS = {folder.name: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in FOLDERS}
SOURCES = {folder.name: next((folder / "src").glob("*/__init__.py")).parent for folder in FOLDERS}
COMMANDS = [(folder, command) for folder, project in PROJECTS.items() for command in project["scripts"]]
each_package = pytest.mark.parametrize("folder", list(PROJECTS))


def test_one_wheel_a_package(installed):
    assert len(installed.wheels) == len(FOLDERS)


def test_a_wheel_holds_its_package_alone(installed):
    for wheel in installed.wheels:
        tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        assert len([top for top in tops if not top.endswith(".dist-info")]) == 1, tops


@each_package
def test_every_module_imports(installed, folder):
    """Those that need what an extra brings may lack it, and nothing else."""
    code = """if True:
        import importlib, importlib.metadata, pkgutil, re, sys
        package = importlib.import_module(sys.argv[1])
        needs = importlib.metadata.requires(sys.argv[2]) or []
        of_extras = {re.match("[A-Za-z0-9]+", need)[0] for need in needs if "extra ==" in need}
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                try:
                    importlib.import_module(module.name)
                except ModuleNotFoundError as error:
                    if error.name not in of_extras:
                        raise
        print(package.__file__)
    """
    file = installed.python(code, SOURCES[folder].name, PROJECTS[folder]["name"])
    assert Path(file).is_relative_to(installed.bin.parent)


@pytest.mark.parametrize(("folder", "command"), COMMANDS)
def test_console_script(installed, folder, command):
    assert command in installed.run(installed.bin / command, "--help")
    assert PROJECTS[folder]["version"] in installed.run(installed.bin / command, "--version")


@each_package
def test_package_data_is_there(installed, folder):
    """Everything beside the modules: configurations, the report's templates."""
    source = SOURCES[folder]
    data = [
        path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert any(path.match("configs/*.yaml" if folder != "shared" else "templates/report.html.*") for path in data)
    package = installed.python(
        "import importlib, sys; print(importlib.import_module(sys.argv[1]).__path__[0])",
        source.name,
    )
    assert [str(path) for path in data if not (Path(package) / path).is_file()] == []


def test_no_module_is_named_shared(installed):
    assert installed.python("import importlib.util; print(importlib.util.find_spec('shared'))") == "None"
