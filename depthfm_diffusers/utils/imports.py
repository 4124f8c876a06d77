"""Optional packages, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_optional(name: str, extra: str, purpose: str) -> ModuleType:
    """Imports a package that only some uses of this one need.

    Args:
        name: The module to import.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the subject of the error message.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise  # it is installed, but a package that it needs is not
        raise ImportError(f"{purpose} needs {name}: pip install 'depthfm_diffusers[{extra}]'") from error
