"""Optional components that a pipeline need not have."""

from __future__ import annotations

from typing import Any, ClassVar


class AbsentComponentsMixin:
    """Leaves absent components out of `components`.

    diffusers lists an optional component as `None` where there is none. A pipeline without an image encoder has the
    components that it had before there were image encoders.
    """

    _left_out_if_none: ClassVar[tuple[str, ...]] = ()

    @property
    def components(self) -> dict[str, Any]:
        """The components by name, as the constructor takes them."""
        listed: dict[str, Any] = super().components  # type: ignore[misc]
        return {name: one for name, one in listed.items() if one is not None or name not in self._left_out_if_none}
