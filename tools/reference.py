"""``documentation/reference/commands.md``, made of the table of commands: ``python tools/reference.py`` writes it."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.commands import COMMANDS, build_parser, command_named

PAGE = Path(__file__).parents[1] / "documentation" / "reference" / "commands.md"
HEAD = """# Commands

Made of the table of commands by `tools/reference.py`: what `-h` says. [How the commands work](how_commands_work.md)
tells more about some of them. `ID` is a dataset in any form: `27`, `027`, `Dataset027_ACDC` or `ACDC`. Flags are
nnU-Net's where nnU-Net has them ([flag by flag](../guide/nnunet_flags.md)). They are written out (no abbreviations),
and a value stands apart from its flag. Every command also has `-h`, `--help`, and `--verbose`: details while working,
and the traceback if something fails.

Results go to stdout; messages, warnings and progress bars go to stderr.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | failed: one message says what was found and what to do next |
| 2 | wrong usage: an unknown flag, dataset, configuration, fold, … |
| 130 | interrupted by Ctrl-C or SIGTERM |

**Every write is atomic, and resuming is the default.** After an interruption of any kind, `kill -9` included, type the
same command again; `samunet_predict` with `--continue_prediction`, and after `--overwrite` without that flag.

`samunet` has all commands under one name: `samunet train 027 2d 0` is `samunet_train 027 2d 0`, and so is
`python -m samunet train 027 2d 0`. `samunet --version` prints the version, `samunet -h` lists the commands.
"""


def page() -> str:
    """The whole page."""
    listed = "\n".join(f"- [{name}](#{name.lower()}): {_text(command_named(name).summary)}" for name in COMMANDS)
    return "\n".join([HEAD, listed, "", *(_section(name) for name in COMMANDS)]).rstrip() + "\n"


def _section(name: str) -> str:
    command, parser = command_named(name), build_parser(name)
    lines = [f"## {name}", "", _text(parser.description), ""]
    if command.examples:
        lines += ["```bash", *command.examples, "```", ""]
    lines += ["| argument or flag | meaning |", "|---|---|"]
    actions = [action for action in parser._actions if action.dest not in ("help", "verbose")]
    lines += [f"| {_names(action)} | {_meaning(action)} |" for action in actions]
    return "\n".join([*lines, "", *([f"More: {command.see}.", ""] if command.see else [])])


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`" + {
            "+": ", one or several",
            "*": ", any number",
            "?": ", optional",
        }.get(action.nargs, "")
    values = argparse.HelpFormatter("")._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
    return ", ".join(f"`{name} {values}`" if values else f"`{name}`" for name in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    required = ". Required" if action.required and action.option_strings else ""
    return _text(action.help) + required


def _text(text: str) -> str:
    """Text for ``-h`` as Markdown."""
    for char in "\\|*<":
        text = text.replace(char, f"\\{char}")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
