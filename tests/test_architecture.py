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


FLAG_OR_COMMAND = re.compile(
    r"(?<![\w\]})/'-])--?[a-zA-Z]\w+|(?<!rm )(?<![\w-])-[a-z](?![\w-])"
    r"|\bsamunet_(?!(raw|preprocessed|results|checkpoints|record|version|model)\b)[a-z]\w+"
)
# What people open and read names what is typed: the instructions for prediction.
FOR_READERS = {"selection/findings.py", "sharing/private.py"}
# Parts of words in messages, which begin with a hyphen after what is filled in; of headers' keys; Python's own flag.
NO_FLAGS = {"-fold, or else ", ".*-time|rast|last|lpst", "-c"}


def texts(path: Path) -> list[str]:
    """Strings of a module but for docstrings; what is filled into them is called X."""
    tree = ast.parse(path.read_text())
    apart, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            apart.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            apart |= {id(part) for part in node.values}
            found.append("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in apart)
    return found + [node.value for node in constants if isinstance(node.value, str)]


BELOW_COMMANDS = [path for path in SOURCES if room_of(path) not in ("commands", "__main__", "errors")]


def test_flags_and_commands_are_named_by_commands_alone():
    found = {}
    for path in BELOW_COMMANDS:
        named = [text for text in texts(path) if FLAG_OR_COMMAND.search(text) and text not in NO_FLAGS]
        if named and str(path.relative_to(PACKAGE)) not in FOR_READERS:
            found[str(path)] = named
    assert found == {}


def named_in_messages(path: Path) -> list[str]:
    """What messages name of the API, as Python."""
    codes = [code for text in texts(path) for code in re.findall("`([^`\n]+)`", text)]
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(ast.Name("argument"), [ast.Constant(name), *_]):
                codes.append(name)
            case ast.Call(ast.Name("call"), [ast.Constant(name), *positional], keywords):
                given = ["X" for _ in positional] + [f"{keyword.arg}=X" for keyword in keywords if keyword.arg]
                codes.append(f"api.{name}({', '.join(given)})")
    return codes


def test_what_messages_name_is_in_the_api_and_in_the_table_of_commands():
    import inspect
    from dataclasses import fields

    from samunet import api
    from samunet.commands import build_parser
    from samunet.commands.typed import as_typed
    from samunet.conversion.case import Options
    from samunet.conversion.datasets import _made
    from samunet.sharing.samed_import import SamedImport

    options = {"import_samed": SamedImport, "export_model": api.ExportOptions, "predict": api.PredictionOptions}
    options |= dict.fromkeys(("plan_experiment", "plan_and_preprocess"), api.PlannerOptions)
    options |= dict.fromkeys(("train", "train_folds"), api.TrainingOptions) | {"pretrain": api.PretrainingOptions}
    options |= {name: Options for name in api.__all__ if name.startswith(("convert_", "make_"))}
    taken = {
        name: {*inspect.signature(getattr(api, name)).parameters} | {field.name for field in fields(options[name])}
        if name in options
        else {*inspect.signature(getattr(api, name)).parameters}
        for name in api.__all__
        if name[0].islower()
    }
    everything = set().union(*taken.values()) | {*inspect.signature(_made).parameters}  # what all converters take
    parser = build_parser("samunet_train")
    for path in BELOW_COMMANDS:
        for code in named_in_messages(path):
            # A field of LoRA that is filled in.
            code = code.replace("{'X': X}", "{'rank': X}").replace("lora.X", "lora.rank")
            outer = ast.parse(f"_({code})", mode="eval").body
            value = outer.args[0] if outer.args else None
            if isinstance(value, ast.Call):
                assert value.func.attr in taken, f"{path}: {code}"
                names, known = {keyword.arg for keyword in value.keywords}, taken[value.func.attr]
            elif isinstance(value, ast.Attribute) and value.value.id == "api":
                names, known = {value.attr}, taken.keys()
            else:
                names, known = {keyword.arg for keyword in outer.keywords}, everything
                names |= {ast.unparse(value).partition(".")[0]} if value else set()
            assert names <= known, f"{path}: {code}"
            assert as_typed(f"`{code}`", parser) != f"`{code}`", f"{path}: no command has {code}"


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
