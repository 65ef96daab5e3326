"""Parts by name: environments, policies, algorithms, optimizers and schedules, built in and of one's own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from purejaxppo.config.validate import suggestion
from purejaxppo.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Name -> what makes the part of that name, for one kind of part.

    A part of one's own is known to a program once the program has registered it, or a module that `--plugin` names; no
    file that is read can add one.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T], reserved: Callable[[], Iterable[str]] = tuple) -> None:
        """Makes a registry with the parts of the package.

        Args:
          kind: of the parts, as messages name it; `register_<kind>` and the argument `<kind>=` are named after it.
          built_in: the parts that are always there.
          reserved: returns further names that cannot be registered, as they mean something else.
        """
        self.kind = kind
        self._built_in = dict(built_in)
        self._reserved = reserved
        self._own: dict[str, T] = {}

    def register(self, name: str, factory: T) -> None:
        """Adds a part of one's own. Its name may be registered again, as when a cell of a notebook is run twice.

        Raises ConfigError for a name that is taken or is none, or a factory that cannot be called.
        """
        # An environment is part of a directory's name; the others stand between commas and spaces in lists of names.
        if not isinstance(name, str) or not name.isprintable() or not name or set(name) & set(" ,/\\"):
            raise ConfigError(f"{name!r} cannot name a part; give text without spaces, commas and slashes.")
        if self._is_taken(name):
            raise ConfigError(f"{self.kind} {name!r} is built in, which cannot be replaced; choose another name.")
        if not callable(factory):
            raise ConfigError(f"{self.kind} {name!r} is made by {factory!r}, which cannot be called; give a function.")
        self._own[name] = factory

    def _is_taken(self, name: Any) -> bool:
        return name in self._built_in or name in self._reserved()

    def remove(self, name: str) -> None:
        """Forgets a part of one's own, if there is one of that name."""
        self._own.pop(name, None)

    def lookup(self, name: str) -> T:
        """Returns what makes a part. Raises ConfigError, with a suggestion and a remedy, for an unknown name."""
        if name not in self:
            known = self.names()
            raise ConfigError(
                f"{self.kind} {name!r} is unknown; choose from {', '.join(known)}.{suggestion(name, known)} "
                f"{self.remedy(name)}"
            )
        return (self._built_in | self._own)[name]

    def remedy(self, name: str) -> str:
        """Returns the sentence that says how a part of one's own becomes known."""
        return (
            f"One of your own needs register_{self.kind}({name!r}, ...), in a module that is given by --plugin or in "
            f"your program, which may pass it as {self.kind}= instead."
        )

    def names(self) -> list[str]:
        """Returns the names of all parts, the built-in ones first."""
        return [*self._built_in, *self._own]

    def built_in(self) -> list[str]:
        """Returns the names of the parts of the package."""
        return list(self._built_in)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name in self._built_in or name in self._own

    def name_for(self, part: Any) -> str:
        """Returns the name of a part that is passed by value, and registers it under that name.

        Args:
          part: a name, which is returned as it is; a built-in or registered factory; or another one, whose name is its
            `__name__`.

        Raises ConfigError for a factory whose `__name__` cannot be registered: a lambda, an object without a name, or
        the name of a built-in part.
        """
        if isinstance(part, str):
            return part
        for known, factory in (self._built_in | self._own).items():
            if factory is part:
                return known
        name = getattr(part, "__name__", "")
        other = self._own.get(name) if isinstance(name, str) else None
        if other is not None and _definition(other) != _definition(part):  # otherwise it has been run again
            raise ConfigError(
                f"{self.kind} {name!r} is registered already, for another function of that name; rename one, or give "
                f"it a name by register_{self.kind}(NAME, ...), and pass that."
            )
        if not isinstance(name, str) or not name.isidentifier() or self._is_taken(name):
            called = f"{name!r}, the name of a built-in one," if self._is_taken(name) else "nothing"
            raise ConfigError(
                f"{self.kind} = {part!r} has {called} to be saved by; give it a name by "
                f"register_{self.kind}(NAME, ...), and pass that."
            )
        self.register(name, part)
        return name


def _definition(part: Any) -> tuple[Any, Any]:
    """Returns where a part is defined."""
    return getattr(part, "__module__", None), getattr(part, "__qualname__", None)
