"""The card of a trained folder (its README.md), and its way to the Hub."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

# What a run leaves in its folder that is not the model.
NOT_THE_MODEL = ("checkpoint-*", "partial-*", "latents*", "latents*/**", "checkpoint-*/**", "partial-*/**")

TEXT = """# {name}

Monocular depth by flow matching ([DepthFM](https://arxiv.org/abs/2403.13788)), trained with
`depthfm_diffusers`.

```python
{usage}
```

Started from: {base}. Data: {data}. The licences of both hold for this model too.

{scores}

Every flag and version is in `run_config.json`; the settings in short:

```json
{settings}
```
"""
WHOLE_MODEL = """import depthfm_diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}")
depth = pipe(image).prediction"""
ADAPTERS = """from depthfm_diffusers import DepthFMPipeline

pipe = DepthFMPipeline.from_pretrained("{base}")
pipe.load_lora_weights("{name}")
depth = pipe(image).prediction"""


def write_model_card(args: argparse.Namespace, scores: Mapping[str, float]) -> None:
    """Writes `README.md` into `--output_dir`.

    Args:
        args: Flags of the run.
        scores: Of the last validation; empty if nothing was validated.
    """
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    base = _public_name(args.pretrained_model_name_or_path or args.unet_config)
    data = ", ".join(_public_name(d["path"] if isinstance(d, dict) else d) for d in args.train_data)
    table = "Not validated: no scene was kept out."
    if scores:
        rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in scores.items())
        table = (
            f"Scores of 1 step on at most {args.validation_frames} frames of scenes kept out (`_depth`, `_log`: "
            f"aligned by least squares in depth or in log depth):\n\n| metric | mean |\n|---|---|\n{rows}"
        )
    shown = ("learning_rate", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "seed")
    card = ModelCardData(
        library_name="diffusers",
        pipeline_tag="depth-estimation",
        tags=["depth-estimation", "flow-matching", "depthfm", *(["lora"] if args.lora_rank else [])],
        base_model=args.pretrained_model_name_or_path if _is_hub_id(args.pretrained_model_name_or_path) else None,
    )
    text = TEXT.format(
        name=name,
        usage=(ADAPTERS if args.lora_rank else WHOLE_MODEL).format(name=name, base=base),
        base=base,
        data=data,
        scores=table,
        settings=json.dumps({k: getattr(args, k) for k in shown}, indent=2),
    )
    ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(Path(args.output_dir) / "README.md")


def check_hub_access(repo_id: str) -> None:
    """Creates the repository, before hours of training rather than after.

    Raises:
        RuntimeError: If the Hub cannot be reached, or does not let this user write there.
    """
    try:
        HfApi().create_repo(repo_id, exist_ok=True)
    except Exception as error:  # many kinds: no token, no network, offline mode, no right
        raise RuntimeError(
            f"--push_to_hub: cannot write to {repo_id} ({error}). Log in with `hf auth login`, or leave the flag out."
        ) from error


def push_to_hub(folder: Path, repo_id: str) -> None:
    """Uploads the model, its card, its configuration and the logs; checkpoints and caches stay here."""
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=list(NOT_THE_MODEL))


def _public_name(path: str) -> str:
    """A local path's last part: where it lay is nobody's business."""
    return Path(path).name if Path(path).exists() else path


def _is_hub_id(name: str | None) -> bool:
    return name is not None and not Path(name).exists()
