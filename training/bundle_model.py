"""Replaces the package's bundled model by a trained folder, as float16 safetensors.

python training/bundle_model.py runs/flow
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import depthfm_diffusers
from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.checkpoints.model_folder import halve_weights, save_pipeline

TARGET = Path(depthfm_diffusers.__file__).parent / "pretrained" / "depthfm-tiny"
SIZE_LIMIT = 40e6


def bundle_model(source: Path, target: Path) -> int:
    """Writes the pipeline in `source` to `target` in float16; other files in `target` are kept.

    Returns:
        Number of bytes of safetensors.

    Raises:
        ValueError: If the weights are larger than `SIZE_LIMIT`, or float16 cannot hold one of them.
    """
    pipe = DepthFMPipeline.from_pretrained(source)
    networks = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    size = 2 * sum(tensor.numel() for network in networks for tensor in network.state_dict().values())
    if size > SIZE_LIMIT:
        raise ValueError(f"{source} has {size / 1e6:.1f} MB of float16 weights, over {SIZE_LIMIT / 1e6:.0f} MB.")
    halve_weights(pipe)
    save_pipeline(pipe, target)
    return sum(path.stat().st_size for path in target.rglob("*.safetensors"))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="--output_dir of training/train_depthfm.py.")
    parser.add_argument("--target", type=Path, default=TARGET, help="Folder to write.")
    args = parser.parse_args()
    size = bundle_model(args.source, args.target)
    print(f"{args.target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
