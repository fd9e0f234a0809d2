"""Registries of named items, to which other packages can add with a decorator or an entry point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from sightline.errors import PluginError, UsageError, suggest

T = TypeVar("T")
D = TypeVar("D")

_IMPORTING = threading.RLock()  # shared by all registries: a plugin of one may look something up in another
_surroundings: list[Callable[[], AbstractContextManager[object]]] = [nullcontext]  # only the last one is used


def surround_imports(enter: Callable[[], AbstractContextManager[object]]) -> None:
    """From now on, import third-party packages within the context ``enter()``."""
    _surroundings.append(enter)


class Registry(Mapping[str, T], Generic[T]):
    """The entries of one kind by name, in the order of registration.

    Installed packages add entries through entry points of the group ``sightline.<kind>s``, whose value is a module (or
    an object in it) that registers something when it is imported. These are imported only once a name is not found or
    all names are listed. A package that cannot be imported does not hide the others: `PluginError` is raised only for
    a name that is missing as a result, and for a list of all names. `noun` denotes an entry in messages, by default
    `kind`. `reserved` are Sightline's own names that are not entries.
    """

    def __init__(self, kind: str, noun: str = "", reserved: Collection[str] = ()) -> None:
        self._kind = kind
        self._noun = noun or kind
        self._reserved = reserved
        self._entries: dict[str, T] = {}
        self._is_complete = False
        self._failure: PluginError | None = None

    def add(self, name: str, entry: T) -> T:
        """Add `entry` and return it; raises `UsageError` if the name is taken."""
        if name in self._entries or name in self._reserved:
            raise UsageError(f"There is already {self._article} {self._noun} {name!r}: choose another name.")
        self._entries[name] = entry
        return entry

    def check_name(self, name: Any) -> None:
        """Raise `UsageError` if `name` is not a name, e.g. the function below a decorator without parentheses."""
        if not isinstance(name, str) or not name:
            raise UsageError(
                f"register_{self._kind} takes the name of {self._article} {self._noun}, as in "
                f'@register_{self._kind}("name"), not {name!r}.'
            )

    def make_decorator(self, name: str, make_entry: Callable[[D], T]) -> Callable[[D], D]:
        """Return a decorator that adds an entry made from the decorated object, and returns that object unchanged.

        Raises `UsageError` as `check_name` does, and later, when the decorator is applied, as `add` does.
        """
        self.check_name(name)

        def register(decorated: D) -> D:
            self.add(name, make_entry(decorated))
            return decorated

        return register

    def check_subclass(self, decorated: Any, base: type) -> None:
        """Raise `UsageError` if the decorated object is not a subclass of `base`, e.g. if it is a function."""
        if not isinstance(decorated, type) or not issubclass(decorated, base):
            raise UsageError(
                f"register_{self._kind} decorates a subclass of {base.__module__}.{base.__name__}, not {decorated!r}."
            )

    def find(self, name: str) -> T:
        """Return the entry `name`; raises `UsageError`, with a suggestion, if there is none."""
        try:
            return self[name]
        except KeyError:
            raise UsageError(f"There is no {self._noun} {name!r}.{suggest(name, self)}") from None

    @property
    def registered_names(self) -> tuple[str, ...]:
        """The names registered so far, without the names from packages that have not been imported."""
        return tuple(self._entries)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._import_plugins()
        if name not in self._entries:
            self._raise_failure()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._import_plugins()
        self._raise_failure()
        return iter(self._entries)

    def __len__(self) -> int:
        self._import_plugins()
        self._raise_failure()
        return len(self._entries)

    @property
    def _article(self) -> str:
        return "an" if self._noun[0] in "aeiou" else "a"

    def _import_plugins(self) -> None:
        with _IMPORTING:
            if self._is_complete:
                return
            self._is_complete = True  # a plugin may look something up during its import
            from importlib import metadata  # slow to import, and not needed for our own names

            failures = []
            entry_points = metadata.entry_points(group=f"sightline.{self._kind}s")
            with _surroundings[-1]() if entry_points else nullcontext():
                for entry_point in entry_points:
                    try:
                        entry_point.load()
                    except Exception as error:  # noqa: BLE001  # third-party packages may raise anything
                        failures.append((entry_point, error))
            for entry_point, cause in failures[:1]:
                self._failure = PluginError(
                    f"The entry point {entry_point.name} ({entry_point.value}), which adds {self._article} "
                    f"{self._noun}, cannot be imported: {cause}. Update or uninstall the package that has it."
                )
                self._failure.__cause__ = cause

    def _raise_failure(self) -> None:
        """Raise `PluginError` if a package could not be imported."""
        if self._failure is not None:
            raise PluginError(str(self._failure)) from self._failure.__cause__
