"""What the README of a study names is there: commands with their flags, configurations, functions, and the files to read.

The texts are the repository's; what they name is looked up in an environment with the wheels of all packages, away from it.
What only one study's README promises, such as its table of arms, is in that study's tests.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
ORIGINAL = "## From the original study's names"
ORDER = "## Read the code in this order"
NOT_HERE = {"polytope-hsae": {"debug", "non_interactive"}}
"""Flags of the original study of which a README says that they are not needed."""
LOOK_UP = """if True:
    import contextlib, inspect, io, json, re, sys
    from importlib import import_module
    from pathlib import Path
    from studycore.cli import COMMON, main

    def found(name):
        "The module or what is in one, else None."
        module, parts = name, []
        while module:
            try:
                thing = import_module(module)
                break
            except ModuleNotFoundError as error:
                if error.name != module and not module.startswith(f"{error.name}."):
                    raise
                module, _, last = module.rpartition(".")
                parts.insert(0, last)
        for part in parts:
            thing = getattr(thing, part, None)
        return thing

    def flags_of(verb):
        "As its help has them, with underscores."
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            assert main(study, [verb, "--help"]) == 0, verb
        names = re.findall(r"(?:^ *|\\[|, )--([a-z][\\w-]*)", shown.getvalue(), re.MULTILINE)
        return [name.replace("-", "_") for name in (*names, *study.aliases)]

    package, names = sys.argv[1], json.loads(sys.argv[2])
    study = import_module(f"{package}.cli").STUDY
    files = {
        name: sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
        for name in (package, "studycore")
        for root in [Path(import_module(name).__file__).parent]
    }
    verbs = {verb: flags_of(verb) for verb in (*study.verbs, *COMMON)}
    kinds = {name: "module" if inspect.ismodule(thing := found(name)) else callable(thing) and "callable" for name in names}
    print(json.dumps({"verbs": verbs, "files": files, "kinds": kinds}))
"""
"""Prints which verbs with which flags a study has, the files of its package, and what kind each name is of."""


class Readme:
    """A study's README, and what its package has."""

    def __init__(self, study: str, installed):
        folder = ROOT / "packages" / study
        (source,) = (folder / "src").glob("*/__init__.py")
        self.study, self.package = study, source.parent.name
        self.text = (folder / "README.md").read_text(encoding="utf-8")
        self.benchmarks = "\n".join(path.read_text(encoding="utf-8") for path in (folder / "benchmarks").glob("*.py"))
        self.names = self.names_in(self.text)
        there = json.loads(installed.python(LOOK_UP, self.package, json.dumps(self.names)))
        self.verbs, self.files, self.kinds = (there[key] for key in ("verbs", "files", "kinds"))

    def section(self, title: str) -> str:
        """What stands under a heading; an error where there is none."""
        return self.text.split(f"\n{title}\n")[1].split("\n## ")[0]

    def names_in(self, text: str) -> list[str]:
        """Dotted names of the package and of studycore."""
        return sorted(set(re.findall(rf"`((?:{self.package}|studycore)(?:\.\w+)+)`", text)))

    def commands(self) -> list[tuple[str, str]]:
        """(verb, what follows it) of each command, in a block or in a line."""
        start = rf"(?:^    |`|compose run |; do |\bbin/){re.escape(self.study)}"
        return re.findall(rf"{start} ([a-z]\w*)([^`#;\n]*)", self.text, re.MULTILINE)

    def in_order(self) -> tuple[list[str], list[str]]:
        """Files and folders of the package that the order of reading links, and what it names without a link."""
        text = self.section(ORDER)
        links = re.findall(rf"\]\(src/{self.package}/([\w/.]+)\)", text)
        return links, re.findall(r"`([\w/]+\.py|[\w/]+/)`", text)


def flags_in(text: str) -> set[str]:
    return {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9_-]*)", text)}


@pytest.fixture(scope="module", params=STUDIES)
def readme(request, installed):
    return Readme(request.param, installed)


def test_each_name_is_there(readme):
    """In the table of the original study's names each is a class or function; elsewhere it may be a module."""
    table = readme.names_in(readme.section(ORIGINAL))
    assert len(table) >= 7
    assert [name for name in table if readme.kinds[name] != "callable"] == []
    assert [name for name in readme.names if not readme.kinds[name]] == []


def test_each_command_is_there_with_its_flags(readme):
    assert len(readme.commands()) >= 7
    assert {verb for verb, _ in readme.commands()} - set(readme.verbs) == set()
    found = [(verb, flags_in(rest) - set(readme.verbs[verb])) for verb, rest in readme.commands()]
    assert [(verb, sorted(lacking)) for verb, lacking in found if lacking] == []


def test_each_flag_is_that_of_a_verb_or_of_a_benchmark(readme):
    there = {flag for flags in readme.verbs.values() for flag in flags} | flags_in(readme.benchmarks)
    assert len(flags_in(readme.text)) >= 10
    assert flags_in(readme.text) - there == NOT_HERE.get(readme.study, set())


def test_each_configuration_is_there(readme):
    """A path or a placeholder (RUN/config.yaml, X, $config) is none of the package's."""
    named = set(re.findall(r"--config ([a-z][\w-]*)(?![\w/.-])", readme.text))
    assert {"quick", "full"} & named or readme.study == "polytope-hsae"
    assert len(named) >= 3
    assert [name for name in sorted(named) if f"configs/{name}.yaml" not in readme.files[readme.package]] == []


def test_the_files_of_the_order_of_reading_are_there_and_all_are_read(readme):
    """Each module right below the package is read. A link stands once; where there are links, only they count."""
    links, named = readme.in_order()
    there = {*readme.files[readme.package], *(f"studycore/{name}" for name in readme.files["studycore"])}
    assert [name for name in (*links, *named) if name.removesuffix("/") not in there] == []
    assert sorted(set(links)) == sorted(links)
    modules = {name for name in readme.files[readme.package] if re.fullmatch(r"\w+\.py", name)}
    assert len(modules) > 8
    assert modules - set(links or named) == {"__init__.py", "__main__.py"}
