"""The path of the bundled model."""

from __future__ import annotations

from pathlib import Path


def default_model_path() -> Path:
    """Returns the folder of the model that ships with this package, `depthfm-tiny`: a complete diffusers folder.

    Returns:
        The folder, to be passed to `DepthFMPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: If the package was installed without the model.
    """
    path = Path(__file__).parent / "depthfm-tiny"
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The bundled model is missing: there is no model_index.json in {path}. Reinstall depthfm_diffusers, or "
            "give a model folder of your own."
        )
    return path
