"""How diffusers finds the classes of this package.

diffusers 0.42 looks a pipeline's class up with `getattr(diffusers, name)`, and a component's class in the library that
`model_index.json` names, which must be diffusers itself, transformers, or a module that has diffusers' base classes.
So the classes of this package become attributes of `diffusers`, and saved folders name `diffusers` as their library:
after `import depthfm_diffusers` they load without `trust_remote_code`, from a local folder or from the Hub.

Importing this package must not import diffusers, which takes seconds. So only the *names* are registered: `diffusers`
gets a `__getattr__` (PEP 562) that imports the class when its name is first looked up. If diffusers is not imported
yet, a finder on `sys.meta_path` adds that function as soon as diffusers has been imported, or reloaded.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_MODULES: dict[str, str] = {}  # the module that defines each registered class, by the name of the class


def register_with_diffusers(classes: Mapping[str, str]) -> None:
    """Makes classes findable by diffusers' loaders, as attributes of the `diffusers` module.

    Neither diffusers nor the modules of the classes are imported. A class that diffusers already has under the same
    name is replaced, with a warning.

    Args:
        classes: The module that defines each class, by the name of the class.

    Raises:
        ImportError: If diffusers is already imported and is too old.
    """
    _MODULES.update(classes)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if "diffusers" in sys.modules:
        require_diffusers()
        _connect()


def require_diffusers() -> None:
    """Checks the version of diffusers; imports it if necessary.

    Raises:
        ImportError: If diffusers is not installed or too old, with the command that installs it.
    """
    import diffusers
    from packaging.version import Version

    if Version(diffusers.__version__).release < (0, 42):
        raise ImportError(
            f"depthfm_diffusers needs diffusers >= 0.42, but {diffusers.__version__} is installed. "
            "Upgrade it: pip install --upgrade 'diffusers>=0.42'"
        )


class NativeLibraryNamesMixin:
    """Makes a pipeline save components of registered classes as `["diffusers", CLASS]`.

    To be named before `DiffusionPipeline` among the bases of a pipeline. diffusers derives the library's name from the
    module of a component's class, and the result depends on the names of diffusers' own pipelines. It records the name
    with `register_to_config`, then sets the component as an attribute: at construction, in `pipe.scheduler = ...`,
    and when a folder is loaded.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a component of a registered class is recorded as one of diffusers.

        Args:
            name: Name of the attribute.
            value: The component, or anything else.
        """
        super().__setattr__(name, value)
        cls = type(getattr(value, "_orig_mod", value))  # torch.compile wraps the network
        if cls.__name__ not in _MODULES or not isinstance(getattr(self, "config", {}).get(name), (tuple, list)):
            return
        # A class of another package that only has the name of a registered one keeps its library.
        if getattr(_diffusers(), cls.__name__) is cls:
            self.register_to_config(**{name: ("diffusers", cls.__name__)})

    def register_to_config(self, **kwargs: Any) -> None:
        """Records config entries; classes in code files of a model folder are named as the registered ones.

        Args:
            **kwargs: Config entries; a component is a tuple or list `(library, class name)`.
        """
        super().register_to_config(**{name: _native(value) for name, value in kwargs.items()})  # type: ignore[misc]


def _native(value: Any) -> Any:
    """Returns `("diffusers", name)` for the `(library, name)` of a registered class; anything else unchanged."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, str) for part in value)):
        return value
    library, class_name = value
    # diffusers copies code files out of a model folder into its module cache, `diffusers_modules`.
    if class_name in _MODULES and (library == _MODULES[class_name] or library.startswith("diffusers_modules.")):
        return ("diffusers", class_name)
    return value


def _diffusers() -> ModuleType:
    """Returns the module `diffusers`, complete even if another thread is importing it."""
    importlib.import_module("diffusers")
    # diffusers replaces itself in `sys.modules` by a lazy module at the end of its import. A thread that waited for
    # that import gets the module from before the replacement.
    return sys.modules["diffusers"]


def _connect() -> None:
    """Lets `diffusers` find the registered names."""
    module = _diffusers()
    for name in _MODULES:
        if name in vars(module) or name in getattr(module, "__all__", ()):
            existing = getattr(module, name)
            if existing.__module__ != _MODULES[name]:
                logger.warning(
                    f"diffusers.{name} was {existing.__module__}.{name}; it is now {_MODULES[name]}.{name}."
                )
                vars(module).pop(name, None)
    previous = vars(module).get("__getattr__")
    if getattr(previous, "__module__", None) == __name__:
        return

    def get_class(name: str) -> Any:
        if name in _MODULES:
            require_diffusers()
            value = getattr(importlib.import_module(_MODULES[name]), name)
            setattr(module, name, value)
            return value
        if previous is not None:
            return previous(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    module.__getattr__ = get_class  # type: ignore[method-assign]


class _DiffusersFinder:
    """Finds diffusers as the other finders do, and connects the registered names after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(fullname, path, target) for finder in later if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ConnectingLoader(spec.loader)  # type: ignore[assignment]
        return spec


class _ConnectingLoader:
    """Stands in for a module's loader until the module is executed."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _connect()


_FINDER = _DiffusersFinder()
