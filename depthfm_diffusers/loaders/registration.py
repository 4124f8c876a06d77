"""How diffusers finds the classes of this package, in one place.

diffusers 0.42 looks a pipeline's class up with `getattr(diffusers, name)`, and a component's class in the library that
`model_index.json` names, which must be diffusers itself, transformers, or a module that has diffusers' base classes.
So the classes of this package become attributes of `diffusers` at import, and saved folders name `diffusers` as their
library: after `import depthfm_diffusers` they load without `trust_remote_code`, locally and from a Hub.
"""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.utils import logging

logger = logging.get_logger(__name__)

# Library names that diffusers derives for classes of this package: from the installed package, or from code files
# that diffusers copied out of a model folder into its module cache.
_OWN_LIBRARIES = ("depthfm_diffusers.", "diffusers_modules.")


def register_with_diffusers(*classes: type) -> None:
    """Make classes findable by diffusers' loaders, by setting them as attributes of the `diffusers` module.

    Args:
        *classes: Pipeline, model or scheduler classes. A class that diffusers already has under the same name is
            replaced, with a warning, unless that one came from this package as well.
    """
    for cls in classes:
        existing = getattr(diffusers, cls.__name__, None)
        if existing is not None and not existing.__module__.startswith(_OWN_LIBRARIES):
            logger.warning(
                f"diffusers.{cls.__name__} was {existing.__module__}.{cls.__name__}; it is now {cls.__module__}'s."
            )
        setattr(diffusers, cls.__name__, cls)


class NativeLibraryNamesMixin:
    """Makes a pipeline save this package's components as `["diffusers", CLASS]`.

    To be named before `DiffusionPipeline` among the bases of a pipeline. All of diffusers' ways of registering a
    component end in `register_to_config`: construction, `pipe.scheduler = ...`, loading and saving again.
    """

    def register_to_config(self, **kwargs: Any) -> None:
        """Register config entries, with components of registered classes named after `diffusers`.

        Args:
            **kwargs: Config entries; a component is a tuple or list `(library, class name)`.
        """
        super().register_to_config(**{name: _native(value) for name, value in kwargs.items()})  # type: ignore[misc]


def _native(value: Any) -> Any:
    """Map `(library, class name)` of this package to `("diffusers", class name)`; leave anything else alone."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, str) for part in value)):
        return value
    library, class_name = value
    if library.startswith(_OWN_LIBRARIES) and hasattr(diffusers, class_name):
        return ("diffusers", class_name)
    return value
