"""Finding records by name: those of this package, of installed packages, and of a user's own modules."""

import importlib
import pkgutil
import reprlib
import sys
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import named_in_own_configs

__all__ = ["Registry"]

Record = TypeVar("Record")


class Registry(Generic[Record]):
    """All records of one kind.

    A record is built in if a module of `package` defines it; its attribute `name` is its name. Installed packages
    add records by entry points of `group`. Any other record is named by its import path, `my_module.MY_RECORD`.

    A name may come from an untrusted file. So `find` imports a module by its path only if a YAML file of the group
    `model` in the user's own `--config-dir` names the record too. Otherwise it only uses modules that are already
    imported. `load` imports the module, and is for names that the user has typed or chosen.

    Args:
        kind: type of the records.
        key: key of a detector's config that holds a name, for messages.
        package: import path of a package. All of its modules are searched, but not those of its subpackages.
        group: group of the entry points.
        others: how further names look, for messages.
    """

    def __init__(self, kind: type[Record], *, key: str, package: str, group: str, others: str = "") -> None:
        self._kind = kind
        self._key = key
        self._package = package
        self._group = group
        self._others = others
        self._found: dict[str, Record] = {}

    @cached_property
    def _built_in(self) -> dict[str, Record]:
        package = importlib.import_module(self._package)
        records: dict[str, Record] = {}
        for info in pkgutil.iter_modules(package.__path__):
            if not info.ispkg:
                module = importlib.import_module(f"{self._package}.{info.name}")
                records |= {value.name: value for value in vars(module).values() if self._is_record(value)}
        return records

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._group)}

    def names(self) -> tuple[str, ...]:
        """Names of the built-in records and of the entry points."""
        return (*self._built_in, *(name for name in self._installed if name not in self._built_in))

    def known(self) -> tuple[Record, ...]:
        """The built-in records, and the others that this process has found so far."""
        return (*self._built_in.values(), *self._found.values())

    def find(self, name: Any) -> Record:
        """The record for a name that may come from a file. No module is imported unless the user names it too.

        Raises:
            LSHFMError: there is no such record, or its module is not imported.
        """
        if not isinstance(name, str):
            raise self._unknown(name)
        self._import_if_own(name)
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._found:
            if name in self._installed:
                record = self._load_entry(self._installed[name])
            else:
                module, _, attribute = name.rpartition(".")
                # With vars, since getattr could make a module import others.
                record = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
                if not self._is_record(record):
                    raise self._unknown(name)
            self._found[name] = record
        return self._found[name]

    def load(self, name: Any) -> Record:
        """The record for a name that the user has given. The module of an import path is imported.

        Raises:
            LSHFMError: there is no such record, or its module cannot be imported.
        """
        module = name.rpartition(".")[0] if isinstance(name, str) else ""
        if not module or name in self.names() or module in sys.modules:
            return self.find(name)
        self._import(name)
        return self.find(name)

    def _import_if_own(self, name: str) -> None:
        module = name.rpartition(".")[0]
        if not module or module in sys.modules or name in self.names():
            return
        if name in named_in_own_configs("model", self._key):
            self._import(name)

    def _import(self, name: str) -> None:
        module = name.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except Exception as error:  # a user's module may raise anything
            raise LSHFMError(
                f"model.{self._key}: {name} cannot be imported ({type(error).__name__}: {error}). Expected an "
                f"import path; the folder of {module.partition('.')[0]} belongs into PYTHONPATH."
            ) from error

    def _load_entry(self, entry: EntryPoint) -> Any:
        try:
            record = entry.load()
        except Exception as error:  # another package may raise anything
            raise LSHFMError(
                f"model.{self._key}: {entry.name} of an installed package cannot be imported ({entry.value}: "
                f"{type(error).__name__}: {error})."
            ) from error
        if not self._is_record(record):
            raise LSHFMError(
                f"model.{self._key}: {entry.name} of an installed package: expected {self._kind.__name__} in "
                f"{entry.value}, found {type(record).__name__}."
            )
        return record

    def _is_record(self, value: Any) -> bool:
        return isinstance(value, self._kind)

    def _unknown(self, name: Any) -> LSHFMError:
        names = ", ".join((*self.names(), *filter(None, [self._others])))
        text = f"model.{self._key}: expected one of {names}, found {reprlib.repr(name)}."
        if isinstance(name, str) and "." in name:
            module, _, attribute = name.rpartition(".")
            if module in sys.modules:
                text += f" {module} has no {self._kind.__name__} {attribute}."
            else:
                text += (
                    f" A file may not make this command import a module: put the folder of {module.split('.')[0]} "
                    "on PYTHONPATH, and give --config-dir=<folder> with a model/<name>.yaml that names it."
                )
        return LSHFMError(text)
