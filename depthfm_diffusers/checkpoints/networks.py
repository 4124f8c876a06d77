"""Loading of a single network, or a tokenizer, from its folder or a Hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from ..utils.errors import describe_error
from .model_files import check_pickled_weights, not_finite


def load_model(cls: Any, what: str, source: str, subfolder: str | None = None) -> Any:
    """Loads a model in float32 or a tokenizer, completely.

    Args:
        cls: Its class.
        what: What errors call it.
        source: Folder, or Hub repository.
        subfolder: Its folder in the source; `None`: the source itself.

    Raises:
        ValueError: If it cannot be read, is incomplete, or has weights that are not finite.
    """
    where = {} if subfolder is None else {"subfolder": subfolder}
    try:
        if cls is CLIPTokenizer:
            return cls.from_pretrained(source, **where)
        if _half_only(Path(source, subfolder or "")):
            where["variant"] = "fp16"
        check_pickled_weights(Path(source, subfolder or ""))
        model, report = cls.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **where)
    except Exception as error:  # diffusers and transformers each raise several kinds
        raise ValueError(f"{what} cannot be loaded: {describe_error(error)}") from error
    # The libraries leave random weights where tensors are missing.
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{what} is incomplete: its weight files lack {', '.join(missing[:3])}{more}.")
    if bad := not_finite(model.state_dict()):
        raise ValueError(f"{what} is damaged: its weights {bad} have NaN or infinite values.")
    return model


def _half_only(folder: Path) -> bool:
    """Returns whether all weight files of a local folder are `*.fp16.*`."""
    weights = [path for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}")]
    return bool(weights) and all(".fp16" in path.name for path in weights)
