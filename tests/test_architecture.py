"""The rooms: imports go downwards only, commands start fast, nothing is pickled."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "samunet"
# From the top floor to the ground; rooms in one set stand beside each other.
FLOORS = [
    {"__main__"},
    {"commands"},
    {"api"},
    {"selection"},
    {"training", "sharing", "report"},
    {"inference"},
    {"models"},
    {"planning"},
    {"network"},
    {"preprocessing"},
    {"evaluation", "conversion"},
    {"dataset"},
    {"imageio"},
    {
        "adaptations",
        "plain_model",
        "plans",
        "encoders",
        "recipes",
        "paths",
        "errors",
        "files",
        "tables",
        "tensors",
        "locks",
        "signals",
        "workers",
        "devices",
        "cores",
    },
]
HEIGHT = {room: len(FLOORS) - index for index, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "samunet" else {f"samunet.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("samunet.")}
    return {room for room in rooms if not room.startswith("__")}


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = room_of(path)
    for room in imported_rooms(path):
        assert room == own or HEIGHT[room] < HEIGHT[own] or HEIGHT[room] == HEIGHT[own] == 1, f"{own} imports {room}"


def test_commands_in_messages_can_be_pasted():
    """What follows ``rm`` or a flag in a message may have spaces and brackets in it, and is quoted."""
    safe = r"(quoted|number_in|paths\.number_in|shlex\.quote)\("
    unsafe = re.compile(rf"(\brm (-f )?|samunet_\w+ (-[dio] )?| -[dpc] )\{{(?!{safe})(?!facts|names|encoder|finished)")
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if unsafe.search(line)
    ]
    assert found == []


def test_nothing_is_pickled():
    for path in SOURCES:
        text = path.read_text()
        assert "pickle.load" not in text, path
        assert "allow_pickle=True" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


@pytest.mark.parametrize(
    "command",
    [
        "samunet_train",
        "samunet_predict",
        "samunet_plan_and_preprocess",
        "samunet_evaluate_folder",
        "samunet_make_dataset",
        "samunet_report",
        "samunet_find_best_configuration",
    ],
)
def test_help_needs_no_heavy_import(command):
    script = (
        f"import sys; from samunet.commands import run_command; status = run_command('{command}', ['-h']);"
        "heavy = {'torch', 'peft', 'SimpleITK', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: samunet_" in result.stdout
