"""What is typed, of the calls and arguments of the API that messages name (see :mod:`samunet.errors`)."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from inspect import signature

from samunet.commands import COMMANDS, command_named

_Values = dict[str, ast.expr | None]  # by argument; None where only its name is said


def as_typed(text: str, parser: argparse.ArgumentParser) -> str:
    """A message with commands and flags in place of calls and arguments of the API.

    Args:
        text: See the top of :mod:`samunet.errors`.
        parser: Of the command that runs, whose flags arguments alone stand for.
    """
    return re.sub("`([^`\n]+)`", lambda match: _typed(match[1], parser) or match[0], text)


def _typed(code: str, parser: argparse.ArgumentParser) -> str | None:
    """None for what names nothing of the API."""
    try:
        outer = ast.parse(f"_({code})", mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(outer, ast.Call):
        return None
    match outer.args, outer.keywords:
        case [ast.Attribute(ast.Name("api"), function)], []:
            return next((typed for typed, _ in _commands_of(function)), None)
        case [ast.Call(ast.Attribute(ast.Name("api"), function)) as call], []:
            return _command(function, call)
        case [ast.Name(name)], []:
            return _flags({name: None}, parser)
        case [ast.Attribute(ast.Name(name), field)], []:
            return _flags({f"{name}.{field}": None}, parser)
        case [], keywords if keywords:
            return _flags(_by_name(keywords), parser)
    return None


def _commands_of(function: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """What to type for a function of the API, and the command's parser; the usual command first."""
    for name in COMMANDS:
        command = command_named(name)
        for called, *words in map(str.split, command.calls):
            if called == function:
                yield " ".join([name, *words]), command.parser()


def _command(function: str, call: ast.Call) -> str | None:
    from samunet import api

    if not hasattr(api, function):
        return None
    parameters = list(signature(getattr(api, function)).parameters)
    open_end = any(_is_ellipsis(value) for value in call.args)
    given = [value for value in call.args if not _is_ellipsis(value)]
    values: _Values = dict(zip(parameters, given)) | _by_name(call.keywords)
    for typed, parser in _commands_of(function):
        words = _words(values, parser)
        if words is not None:
            return " ".join([typed, *(["…"] if open_end else []), *words])
    return None


def _flags(values: _Values, parser: argparse.ArgumentParser) -> str | None:
    others = (command_named(name).parser() for name in COMMANDS)
    for candidate in (parser, *others):
        words = _words(values, candidate)
        if words is not None:
            return " ".join(words)
    return None


def _by_name(keywords: list[ast.keyword]) -> _Values:
    return {keyword.arg: keyword.value for keyword in keywords if keyword.arg is not None}


def _words(values: _Values, parser: argparse.ArgumentParser) -> list[str] | None:
    """Words of a command line, those without a flag first; None if the command has not all of the arguments.

    ``lora={"rank": 8}`` has the argument ``lora.rank``.
    """
    by_name: dict[str, argparse.Action] = {}
    for action in parser._actions:
        for name in (action.dest, *getattr(action, "also", ())):
            by_name.setdefault(name, action)
    for name, value in list(values.items()):
        if name not in by_name and isinstance(value, ast.Dict):
            values = {key: one for key, one in values.items() if key != name} | {
                f"{name}.{ast.literal_eval(key)}": one for key, one in zip(value.keys, value.values) if key
            }
    if not values.keys() <= by_name.keys():
        return None
    positional, flags = [], []
    order = {id(action): index for index, action in enumerate(parser._actions)}
    for name in sorted(values, key=lambda name: 0 if by_name[name].option_strings else order[id(by_name[name])] - 1000):
        action, value = by_name[name], values[name]
        if not action.option_strings:
            positional += [action.metavar or action.dest] if value is None else _value(value)
        elif value is None:
            flags.append(action.option_strings[0])
        elif action.nargs == 0:
            other = isinstance(value, ast.Constant) and value.value is not action.const
            flags += [] if other else [action.option_strings[0]]
        else:
            flags += [action.option_strings[0], *_value(value)]
    return positional + flags


def _value(value: ast.expr) -> list[str]:
    match value:
        case ast.List(elements) | ast.Tuple(elements):
            return [word for element in elements for word in _value(element)]
        case ast.Dict(keys, values):
            pairs = (zip(_value(key), _value(one)) for key, one in zip(keys, values))
            return ["=".join(pair) for pairs_of_one in pairs for pair in pairs_of_one]
        case ast.Constant(str(text)):
            return [shlex.quote(text)]
    return ["…" if _is_ellipsis(value) else ast.unparse(value)]


def _is_ellipsis(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is ...
