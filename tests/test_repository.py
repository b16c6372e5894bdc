"""What the repository's own files promise: the layout, make, compose, images and metadata, for every folder in packages/."""

import ast
import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import mutants
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
MAIN_FILES = [
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Makefile",
    "compose.yaml",
    "compose.gpu.yaml",
    "tox.ini",
    "constraints.txt",
    ".dockerignore",
    ".ci/run",
    "shared/pyproject.toml",
    "shared/README.md",
    "shared/CHANGELOG.md",
]
each_study = pytest.mark.parametrize("study", STUDIES)


def project(folder: str) -> dict:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


@cache
def compose(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def make(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "SIZE", "PYTHON")}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_studies():
    assert STUDIES


@pytest.mark.parametrize("name", MAIN_FILES)
def test_layout(name):
    assert (ROOT / name).is_file()


@each_study
def test_layout_of_a_study(study):
    folder = ROOT / "packages" / study
    for name in ("README.md", "CHANGELOG.md"):
        assert (folder / name).is_file(), name
    for name in ("benchmarks", "tests"):
        assert any((folder / name).glob("*.py")), name
    (source,) = (folder / "src").glob("*/__init__.py")
    assert any((source.parent / "configs").glob("*.yaml"))
    assert (ROOT / "docker" / study / "Dockerfile").is_file()


@each_study
def test_metadata(study):
    """A study has a command of its folder's name and depends on the present studycore and on no other study."""
    metadata = project(f"packages/{study}")
    assert study in metadata["scripts"]
    requirements = {canonicalize_name((r := Requirement(text)).name): r for text in metadata["dependencies"]}
    assert requirements["studycore"].specifier.contains(project("shared")["version"])
    others = {canonicalize_name(project(f"packages/{other}")["name"]) for other in STUDIES if other != study}
    assert not others & set(requirements)


@pytest.mark.parametrize("folder", ["shared", *(f"packages/{study}" for study in STUDIES)])
def test_every_direct_dependency_is_pinned(folder):
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([a-z0-9-]+)==([0-9][\w.]*)", line).groups()
            assert name not in pins
            pins[name] = version
    metadata = project(folder)
    extras = [text for extra in metadata.get("optional-dependencies", {}).values() for text in extra]
    for requirement in map(Requirement, metadata["dependencies"] + extras):
        if not requirement.name.startswith("studycore") and requirement.name != metadata["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert pins["torch"] == "2.13.0"


@pytest.mark.parametrize("study", [*(f"packages/{study}/src" for study in STUDIES), "shared/tests"])
def test_every_setting_has_a_docstring(study):
    """It is the flag's help; also in the toy study, which new ones are copied from."""
    (file,) = (ROOT / study).glob("*/config.py")
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    assert classes
    for cls in classes:
        for setting, following in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(setting, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{cls.name}.{setting.target.id}"


@pytest.mark.parametrize("folder", [".", "shared", *(f"packages/{study}" for study in STUDIES)])
def test_no_paragraph_of_a_readme_is_longer_than_six_lines(folder):
    """Of some 120 characters; an item of a list counts as a paragraph. What follows a table without a blank line is a row."""
    blocks = re.split(r"\n\n+|\n(?=- |\d+\. )", (ROOT / folder / "README.md").read_text().strip())
    assert [block for block in blocks if len(block) > 700 and not block.startswith(("    ", "|"))] == []
    tables = [block for block in blocks if block.startswith("|")]
    assert [line for table in tables for line in table.splitlines() if not line.startswith("|")] == []


@each_study
def test_changelog_names_the_version(study):
    assert f"## {project(f'packages/{study}')['version']}" in (ROOT / "packages" / study / "CHANGELOG.md").read_text()


def test_changelog_of_studycore_names_the_version():
    assert f"## {project('shared')['version']}" in (ROOT / "shared/CHANGELOG.md").read_text()


def test_compose_has_the_studies_and_nothing_else():
    assert sorted(compose("compose.yaml")["services"]) == STUDIES
    assert "cache" in compose("compose.yaml")["volumes"]


@each_study
def test_compose_service(study):
    service = compose("compose.yaml")["services"][study]
    assert service["profiles"] == [study]
    assert service["image"] == f"geometry-of-learning/{study}"
    assert service["build"]["context"] == "."
    assert service["build"]["dockerfile"] == f"docker/{study}/Dockerfile"
    assert set(service["volumes"]) == {"./runs:/work/runs", "cache:/cache"}
    assert service["user"] == "${UID:-1000}:${GID:-1000}"
    assert service["init"] is True
    assert service["stop_grace_period"] == "2m"
    assert service["shm_size"] == "8gb"
    assert not {"entrypoint", "command", "deploy", "gpus"} & set(service)


@each_study
def test_gpu_file_adds_devices_and_nothing_else(study):
    file = compose("compose.gpu.yaml")
    assert sorted(file["services"]) == STUDIES
    assert set(file) <= {"services", "x-gpu"}
    (device,) = file["services"][study]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert file["services"][study] == {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


@each_study
def test_dockerfile(study):
    text = (ROOT / "docker" / study / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert f'ENTRYPOINT ["{study}"]' in final
    assert "WORKDIR /work\n" in final
    assert re.search(r"^USER [1-9]\d*$", final, re.MULTILINE)
    assert "useradd --no-log-init" in final
    for name in ("HF_HOME", "NLTK_DATA", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert re.search(rf"{name}=/cache/\w+", final), name
    assert "NVIDIA_VISIBLE_DEVICES=all" in final
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in final
    assert set(compose("compose.yaml")["services"][study]["build"]["args"]) == set(
        re.findall(r"^ARG (\w+)", text, re.M)
    )


def test_make_lists_its_targets():
    listed = re.findall(r"^  make ([\w-]+)  ", make(), re.MULTILINE)
    assert {
        "setup",
        "studies",
        "test",
        "lint",
        "bench",
        "images",
        "clean",
        *STUDIES,
    } <= set(listed)
    for target in listed:
        make("--dry-run", target)


@each_study
def test_make_knows_the_main_job(study):
    """Each size is a configuration of the study's own."""
    named = []
    for size in ("quick", "full"):
        text = make("--dry-run", study, f"SIZE={size}")
        found = re.search(rf"^\.venv/bin/{study} .*--config ([\w-]+)", text, re.MULTILINE)
        assert found, size
        assert list((ROOT / "packages" / study / "src").glob(f"*/configs/{found[1]}.yaml")), found[1]
        named.append(found[1])
    assert len(set(named)) == 2


def test_setup_and_the_images_of_studies_that_read_with_it_fetch_the_real_model():
    fetches = "studycore language fetch"
    assert fetches in make("--dry-run", "setup")
    for study in ("retrofit", "polytope-hsae", "latentwire-adapter"):
        assert fetches in (ROOT / "docker" / study / "Dockerfile").read_text(), study


@each_study
def test_tox_has_every_study(study):
    text = (ROOT / "tox.ini").read_text()
    assert re.search(rf"^    py{{311,312,313}}-{study}$", text, re.MULTILINE)
    assert f"    {study}: -e {{tox_root}}/packages/{study}[test]\n" in text
    assert f"    {study}: {{tox_root}}/packages/{study}\n" in text


@pytest.mark.parametrize("folder", ["shared", *(f"packages/{study}" for study in STUDIES)])
def test_warnings_are_errors_in_the_tests_of_every_package(folder):
    options = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["filterwarnings"][0] == "error"
    assert all(":" in entry for entry in options["filterwarnings"][1:])
    assert {"--strict-markers", "--strict-config"} <= set(options["addopts"])
    assert options["xfail_strict"] is True


def test_environments_run_beside_one_another_with_a_thread_each_and_show_their_output():
    text = (ROOT / "tox.ini").read_text()
    assert "\n    OMP_NUM_THREADS = 1\n" in text
    assert "\nparallel_show_output = true\n" in text
    assert "run-parallel --parallel 3 " in make("--dry-run", "test", "AT_ONCE=3")


def test_ci_runs_what_the_readme_says():
    readme = (ROOT / "README.md").read_text()
    assert "make studies" in readme
    assert "make test" in readme
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert re.search(r"^make test\b", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "Geometry of Learning: five reproducible studies"
    assert citation["license"] == "MIT"
    assert citation["message"]
    assert all("name" in author or "family-names" in author for author in citation["authors"])


@each_study
def test_a_study_names_itself_for_the_index(study):
    points = project(f"packages/{study}")["entry-points"]["studycore.studies"]
    assert points == {study: f"{study.replace('-', '_')}.cli:STUDY"}


def test_make_mutants_asks_for_the_faults_of_each_package():
    """Its flags are those of the script, and each package has faults of its own."""
    (line,) = [line for line in Path(ROOT, "Makefile").read_text().splitlines() if "tests/mutants.py" in line]
    assert '--package "$$package"' in line
    packages = {row["package"] for row in mutants.mutants()}
    assert packages == {"studycore", *STUDIES}
    for package in packages:
        assert {row["package"] for row in mutants.asked_for(["--package", package])[1]} == {package}
    one = mutants.mutants()[0]
    assert one in mutants.asked_for(["--package", one["package"], "--only", one["new"]])[1]


def test_the_faults_of_make_mutants_can_be_put_in():
    """Each piece stands exactly once in its file, and the tests that should fail are there."""
    rows = mutants.mutants()
    assert len(rows) > 50
    for row in rows:
        home = mutants.source(row["package"])
        text = mutants.original(row).read_text(encoding="utf-8")
        assert mutants.mutate(text, row["old"], row["new"]) != text, row
        for file, _, test in (name.partition("::") for name in row["tests"].split()):
            assert f"def {test}(" in (home / file).read_text() if test else (home / file).is_file(), row


def test_each_kind_of_fault_in_the_readme_is_held_by_tests_that_are_there():
    section = (ROOT / "README.md").read_text().partition("\n## Faults\n")[2]
    named = re.findall(r"`([\w/.-]+\.py)::(\w+)`", section.partition("\n## ")[0])
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)


@each_study
def test_what_decides_a_claim_is_a_verb_with_a_configuration_that_is_there(study):
    """Reports print it for what was not run: Study.decided_by and Claim.decided_by."""
    source = next((ROOT / "packages" / study / "src").glob("*/cli.py")).parent
    assert re.search(r'decided_by="\w+ --config', (source / "cli.py").read_text()), study
    for path in (source / "cli.py", source / "claims.py"):
        for verb, config in re.findall(r'"(\w+) --config ([\w-]+)[" ]', path.read_text()):
            assert re.search(rf'"{verb}": (ManyRuns|OneRun)\(', (source / "cli.py").read_text()), (path, verb)
            assert (source / "configs" / f"{config}.yaml").is_file(), (path, config)


def names_of(source: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def lacking_imports(script: Path) -> list[str]:
    """What a script imports of this project's packages and they do not have."""
    lacking = []
    for node in ast.walk(ast.parse(script.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        roots = [
            *ROOT.glob(f"packages/*/src/{node.module.split('.')[0]}"),
            ROOT / "shared" / "src" / node.module.split(".")[0],
        ]
        if not (root := next((root for root in roots if root.is_dir()), None)):
            continue
        place = root.parent.joinpath(*node.module.split("."))
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        there = names_of(source) if source.is_file() else set()
        there |= {path.stem for path in place.glob("*")} if place.is_dir() else set()
        lacking += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in there]
    return lacking


@pytest.mark.parametrize(
    "script",
    sorted([*ROOT.glob("packages/*/benchmarks/*.py"), *ROOT.glob("shared/benchmarks/*.py")]),
    ids=lambda path: path.name,
)
def test_a_benchmark_imports_what_is_there(script):
    """Nothing runs the benchmarks but a reader who checks a figure."""
    assert lacking_imports(script) == []


def test_an_import_of_what_has_gone_is_seen(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from studycore.files import read_json, gone\nfrom studycore.nowhere import x\nfrom os import y\n"
    )
    assert lacking_imports(script) == ["studycore.files.gone", "studycore.nowhere.x"]
