"""Refuse unknown options and arguments of the wrong type by name, before any work, and say what was expected."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from numbers import Integral, Real
from os import PathLike
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from sightline.config import RunConfig
from sightline.config.parse import find_settings
from sightline.errors import SightlineError, UsageError, suggest

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_KINDS: dict[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "bool": ((bool, np.bool_), "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "a string"),
    "Path": (PathLike, "a path"),
    "None": (type(None), ""),
    **dict.fromkeys(("Device", "Engine", "Split", "TTA"), (str, "a string")),  # values are checked by the functions
}


def check_types(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise `UsageError` for an unknown option, or a value that is of no type in its annotation.

    NumPy numbers are numbers; True is not. Annotations with types that are not in `_KINDS` allow any value. Errors of
    the function, and of an iterator that it returns, name arguments instead of the options of the command line.
    """
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    kinds = {parameter.name: str(parameter.annotation).split(" | ") for parameter in parameters}
    simple = {name: allowed for name, allowed in kinds.items() if set(allowed) <= set(_KINDS)}

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in signature.parameters:
                raise UsageError(_explain_unknown_option(function, name, [p.name for p in parameters]))
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            _check_count(function, parameters, len(args))
            return function(*args, **kwargs)  # Python's own message names the missing argument
        for name, value in arguments.items():
            if name in simple:
                _check_value(name, value, simple[name])
        with _naming_arguments():
            result = function(*args, **kwargs)
        return cast("R", _name_in_errors(result)) if isinstance(result, Iterator) else result

    return checked


@contextmanager
def _naming_arguments() -> Iterator[None]:
    """Let errors of the block name arguments instead of the options of the command line."""
    try:
        yield
    except SightlineError as error:
        error.names_arguments = True
        raise


def _name_in_errors(values: Iterator[Any]) -> Iterator[Any]:
    with _naming_arguments():
        yield from values


def check_method_types(cls: C) -> C:
    """Make all public methods of a class check the types of their arguments, as `check_types` does.

    Errors of properties name arguments, too.
    """
    for name, member in list(vars(cls).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property) and member.fget is not None:
            setattr(cls, name, property(_naming_arguments()(member.fget)))
        if isinstance(member, FunctionType):
            setattr(cls, name, check_types(member))
        elif isinstance(member, classmethod):
            setattr(cls, name, classmethod(check_types(member.__func__)))
    return cls


def _check_count(function: Callable[..., Any], parameters: list[inspect.Parameter], count: int) -> None:
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if count > len(positional) and len(parameters) > len(positional):
        names = " and ".join(name for name in positional if name not in ("self", "cls")) or "nothing"
        hint = "; for arrays with labels, data is Dataset.from_arrays(x, y)" if "data" in positional else ""
        option = parameters[len(positional)].name
        raise UsageError(
            f"{_name_caller(function)}() takes only {names} by position: name the options, as in {option}=...{hint}."
        )


def _name_caller(function: Callable[..., Any]) -> str:
    return function.__qualname__.split(".")[0] if function.__name__ == "__init__" else function.__name__


def _explain_unknown_option(function: Callable[..., Any], name: str, known: list[str]) -> str:
    options = [option for option in known if option not in ("self", "cls")]
    caller = _name_caller(function)
    settings = [s for s in find_settings(RunConfig, name) if "." in s] if "set" in options else []
    owner, is_method, _ = function.__qualname__.partition(".")
    if is_method:  # of a model or of data: only some sections can be set there
        sections = ("data.", "input.", "model.task") if owner == "Dataset" else ("data.",)
        settings = [s for s in settings if s.startswith(sections)]
    if len(settings) == 1 and not difflib.get_close_matches(name, options, n=1, cutoff=0.8):
        return f"{caller}() has no option {name!r}: use set={{{settings[0]!r}: ...}}."
    return f"{caller}() has no option {name!r}.{suggest(name, options)}"


def _check_value(name: str, value: object, allowed: list[str]) -> None:
    if isinstance(value, str) and not value and "Path" in allowed:  # would mean the current folder
        raise UsageError(f"{name} is empty: give a path.")
    is_bool = isinstance(value, bool)
    if not any(isinstance(value, _KINDS[kind][0]) and (kind == "bool" or not is_bool) for kind in allowed):
        expected = " or ".join(_KINDS[kind][1] for kind in allowed if kind != "None")
        raise UsageError(f"{name} must be {expected}, not {_describe(value)}.")


def _describe(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return ("the string " if isinstance(value, str) else "") + repr(value)[:80]
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
