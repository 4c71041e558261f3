"""The documentation says what the code does: flags, commands, links, rules and examples are checked against it."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import runpy
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from samunet.commands import COMMANDS, FILES, build_parser, command_named, main
from samunet.commands.table import Command
from samunet.dataset.description import description_from_json

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "documentation").rglob("*.md")))
}
# A dash or two, then a letter: neither a negative number nor a rule of dashes.
FLAG = re.compile(r"(?<![\w-])--?[A-Za-z]\w*")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def section(text: str, heading: str) -> str:
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def typed_commands(text: str) -> list[str]:
    """Calls of samunet's commands in shell blocks, and in code spans that have arguments."""
    lines = [line for block in fenced(text, "bash") for part in block.splitlines() for line in part.split(";")]
    spans = re.findall(r"`(samunet_\w+ [^`]+)`", without_fences(text))
    calls = [re.sub(r"^\s*do\s+", "", line).strip() for line in lines] + spans
    return [call for call in calls if call.split(" ")[0] in SCRIPTS]


SCRIPTS = ["samunet", *COMMANDS]
CALLS = sorted({call for text in PAGES.values() for call in typed_commands(text)})


def test_the_page_of_commands_is_that_of_the_table():
    script = runpy.run_path(str(ROOT / "tools" / "reference.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run: python tools/reference.py"


def test_every_file_lists_its_commands():
    for file, names in FILES.items():
        content = vars(importlib.import_module(f"samunet.commands.{file}"))
        assert sorted(value.name for value in content.values() if isinstance(value, Command)) == sorted(
            f"samunet_{name}" for name in names
        )


def test_console_scripts_are_the_commands(monkeypatch):
    given = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    points = [
        metadata.EntryPoint(*script.split("="), "console_scripts")
        for script in given["entry_points"]["console_scripts"]
    ]
    assert [point.name for point in points] == SCRIPTS
    assert points[0].load() is main
    assert all(point.load() is command_named(point.name) for point in points[1:])


def test_flags_named_anywhere_exist():
    known = set().union(*(options_of(build_parser(command)) for command in SCRIPTS))
    # These name flags of nnU-Net that samunet refuses, and flags of the benchmarks' scripts.
    without = re.compile(r"documentation/(guide/nnunet_flags|results/.*|lab/.*)\.md")
    for name in (page for page in PAGES if not without.fullmatch(page)):
        spans = re.findall(r"`(-[^`]*)`", without_fences(PAGES[name]))
        unknown = {flag for span in spans for flag in FLAG.findall(span)} - known
        assert not unknown, name


@pytest.mark.parametrize("call", CALLS)
def test_commands_as_typed_are_understood(call):
    command, *arguments = shlex.split(call.replace("$fold", "1"), comments=True)
    build_parser(command).parse_args(arguments)


def test_readme_has_the_three_commands():
    three = "samunet_plan_and_preprocess -d 027\nsamunet_train 027 2d 0\nsamunet_predict -i imagesTs -o preds\n"
    assert three in fenced(PAGES["README.md"], "bash")


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(PAGES[page])):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_are_named_exist(page):
    named = re.findall(r"`((?:samunet|tests|tools|benchmarks|documentation)/[\w/.]*)`", without_fences(PAGES[page]))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_readme_is_a_page():
    assert len(PAGES["README.md"].splitlines()) <= 100


FIGURES = sorted((ROOT / "documentation" / "figures").iterdir())
SCRIPTS_OF_FIGURES = sorted((ROOT / "tools" / "figures").glob("*.py"))


def test_every_picture_has_a_script_and_every_script_a_picture():
    assert {path.stem for path in FIGURES} == {path.stem for path in SCRIPTS_OF_FIGURES} - {"svg"}
    makefile = (ROOT / "Makefile").read_text()
    lists = re.findall(r"for figure in ([\w ]+);", makefile)
    assert sorted(" ".join(lists).split()) == [path.stem for path in FIGURES]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda path: path.name)
def test_pictures_are_small_and_linked(figure):
    assert figure.stat().st_size < 300_000
    assert any(f"figures/{figure.name})" in text for text in PAGES.values())


@pytest.mark.parametrize("figure", [path.stem for path in FIGURES if path.suffix == ".svg"])
def test_drawings_are_what_their_scripts_draw(figure, tmp_path, monkeypatch):
    """Of the rooms, for one, which are those of tests/test_architecture.py: otherwise run ``make figures``."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "figures")
    svg = importlib.import_module("svg")
    monkeypatch.setattr(svg, "FIGURES", tmp_path)
    runpy.run_path(str(ROOT / "tools" / "figures" / f"{figure}.py"), run_name="__main__")
    drawn = (ROOT / "documentation" / "figures" / f"{figure}.svg").read_text(encoding="utf-8")
    assert (tmp_path / f"{figure}.svg").read_text(encoding="utf-8") == drawn


def test_readme_links_every_page_of_the_documentation():
    assert [page for page in PAGES if page.startswith("documentation/") and f"({page})" not in PAGES["README.md"]] == []


PYTHON = [(page, block) for page, text in PAGES.items() for block in fenced(text, "python")]


def test_readme_and_api_page_have_examples():
    assert {"README.md", "documentation/reference/python_api.md"} <= {page for page, _ in PYTHON}


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_examples_compile_and_use_what_exists(page, block):
    from samunet import api

    tree = ast.parse(block, page)
    compile(tree, page, "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "api":
            assert node.attr in api.__all__


JSON = [(page, block) for page, text in PAGES.items() for block in fenced(text, "json")]


@pytest.mark.parametrize(("page", "block"), JSON, ids=[page for page, _ in JSON])
def test_json_examples_are_valid(page, block):
    content = json.loads(block)
    if "labels" in content:
        assert description_from_json(content, page).labels.num_outputs > 0


def test_every_planning_rule_has_a_section_with_rule_reason_and_source():
    files = [ROOT / "samunet" / "planning" / name for name in ("rules.py", "planes.py")]
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    rules = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    page = section(PAGES["documentation/reference/planning_rules.md"], "The rules")
    sections = {re.search(r"^`(\w+)`$", text, re.MULTILINE)[1]: text for text in page.split("\n### ")[1:]}
    assert [rule for rule in rules if rule not in sections] == []
    words = ("**Rule.**", "**Why.**", "**Source.**")
    assert [rule for rule, text in sections.items() if not all(word in text for word in words)] == []


@pytest.mark.parametrize(
    ("heading", "name"),
    [("The dataset", "Plans"), ("A configuration", "ConfigurationPlan"), ("A network", "NetworkPlan")],
)
def test_every_field_of_plans_has_a_row(heading, name):
    from samunet import plans

    rows = section(PAGES["documentation/reference/plans.md"], heading).splitlines()
    documented = {field for row in rows if row[:3] == "| `" for field in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    fields = {field for field in getattr(plans, name).__annotations__ if not field.startswith("_")}
    assert documented - {"inherits_from"} == fields


def test_every_field_of_adaptations_has_a_row():
    from samunet.adaptations import ADAPTATIONS

    rows = section(PAGES["documentation/reference/plans.md"], "An adaptation").splitlines()
    documented = {field for row in rows if row[:3] == "| `" for field in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert documented == {field for kind in ADAPTATIONS.values() for field in kind.model_fields}


API_PAGE = PAGES["documentation/reference/python_api.md"]
API_ROWS = [line.split(" | ")[0] for line in API_PAGE.splitlines() if line.startswith("| `")]
CLASSES = ("PlannerOptions", "ExportOptions", "TrainingOptions", "PretrainingOptions", "PredictionOptions")


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_has_a_row_and_no_other(name):
    from samunet import api

    table = API_PAGE.split(f"| `{name}` | default | flag |\n")[1].split("\n\n")[0]
    cells = [row.split(" | ")[0].split(":")[0] for row in table.splitlines()[1:]]
    documented = [option for cell in cells for option in re.findall(r"`(\w+)`", cell)]
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(getattr(api, name)))


def test_every_function_has_a_row_with_its_arguments():
    from samunet import api

    found = {}
    for row in API_ROWS:
        if match := re.fullmatch(r"\| `(\w+)(\(.*\))`", row):
            arguments = ast.parse(f"def f{match[2]}: pass").body[0].args
            given = [*arguments.args, *arguments.kwonlyargs, *([arguments.kwarg] if arguments.kwarg else [])]
            found[match[1]] = [argument.arg for argument in given]
    functions = {name for name in api.__all__ if name[0].islower()}
    assert functions <= found.keys()
    assert {name: found[name] for name in functions} == {
        name: list(inspect.signature(getattr(api, name)).parameters) for name in functions
    }


def test_commands_without_a_function_are_named():
    from samunet import api

    said = set(re.findall(r"`samunet_(\w+)`", API_PAGE.split("## Functions")[0]))
    other_names = {"evaluate_folder": "evaluate", "predict_from_modelfolder": "predict"}
    other_names |= {"evaluate_simple": "evaluate", "plot_overlay_pngs": "plot_overlays"}
    other_names |= {"export_model_to_zip": "export_model", "install_pretrained_model_from_zip": "install_model"}
    other_names |= {"next": "label_next"}
    names = {command.removeprefix("samunet_") for command in SCRIPTS}
    names -= {"samunet"}  # all commands under one name
    assert {name for name in names if other_names.get(name, name) not in api.__all__} == said
