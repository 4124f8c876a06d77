"""The card of a trained folder (its README.md), and its way to the Hub."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from .. import default_model_path

# What a run leaves in its folder that is not the model.
NOT_THE_MODEL = ("checkpoint-*", "partial-*", "latents*", "latents*/**", "checkpoint-*/**", "partial-*/**")

TEXT = """# {name}

{title}

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
DEPTH_TITLE = """Monocular depth by flow matching ([DepthFM](https://arxiv.org/abs/2403.13788)), trained with
`depthfm_diffusers`."""
CONTROLNET_TITLE = """ControlNet that makes Stable Diffusion follow a depth, trained with `depthfm_diffusers` on the
depth that [DepthFM](https://arxiv.org/abs/2403.13788) ({depth_model}) estimates. Control images are of mode
`{control_mode}` ({polarity}), percentiles {percentiles}."""
WHOLE_MODEL = """import depthfm_diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}")
depth = pipe(image).prediction"""
ADAPTERS = """from depthfm_diffusers import DepthFMPipeline

pipe = DepthFMPipeline.from_pretrained("{base}")
pipe.load_lora_weights("{name}")
depth = pipe(image).prediction"""


CONTROLNET = """from depthfm_diffusers import DepthFMControlNetPipeline, DepthFMPipeline, default_model_path
from diffusers import ControlNetModel, StableDiffusionPipeline

pipe = DepthFMControlNetPipeline.from_pipelines(
    StableDiffusionPipeline.from_pretrained("{base}"),
    DepthFMPipeline.from_pretrained({depth_source}),
    controlnet=ControlNetModel.from_pretrained("{name}"),
)
output = pipe("a prompt", image, control_mode="{control_mode}", control_percentiles={percentiles})"""
SETTINGS = ("learning_rate", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "seed")


def write_model_card(args: argparse.Namespace, scores: Mapping[str, float]) -> None:
    """Writes `README.md` into `--output_dir` of `train_depthfm.py`.

    Args:
        args: Flags of the run.
        scores: Of the last validation; empty if nothing was validated.
    """
    base = args.pretrained_model_name_or_path or args.unet_config
    usage = (ADAPTERS if args.lora_rank else WHOLE_MODEL).format(name=_name(args), base=_public_name(base))
    what = (
        f"Scores of 1 step on at most {args.validation_frames} frames of scenes kept out (`_depth`, `_log`: aligned "
        "by least squares in depth or in log depth)"
    )
    tags = ["depth-estimation", "flow-matching", "depthfm", *(["lora"] if args.lora_rank else [])]
    _write(args, base, DEPTH_TITLE, usage, what, scores, "depth-estimation", tags)


def write_controlnet_card(args: argparse.Namespace, scores: Mapping[str, float]) -> None:
    """Writes `README.md` into `--output_dir` of `train_depth_controlnet.py`.

    Args:
        args: Flags of the run.
        scores: Of the last validation; empty if nothing was validated.
    """
    bundled = Path(args.depth_model).resolve() == default_model_path().resolve()
    facts = {
        "name": _name(args),
        "base": _public_name(args.pretrained_model_name_or_path),
        "depth_model": _public_name(args.depth_model),
        "depth_source": "default_model_path()" if bundled else f'"{_public_name(args.depth_model)}"',
        "control_mode": args.control_mode,
        "polarity": "near is white" if args.control_mode == "disparity" else "near is black",
        "percentiles": tuple(args.control_percentiles),
    }
    what = (
        f"Depth adherence of at most {args.validation_images} images that were kept out "
        f"({args.validation_inference_steps} steps, guidance {args.validation_guidance_scale}): depth estimated from "
        "what was generated, against the depth asked for, aligned in log depth"
    )
    tags = ["controlnet", "stable-diffusion", "depth", "depthfm"]
    base = args.pretrained_model_name_or_path
    title, usage = CONTROLNET_TITLE.format(**facts), CONTROLNET.format(**facts)
    _write(args, base, title, usage, what, scores, "text-to-image", tags)


def _write(
    args: argparse.Namespace,
    base: str,
    title: str,
    usage: str,
    what_is_scored: str,
    scores: Mapping[str, float],
    task: str,
    tags: Sequence[str],
) -> None:
    path = Path(args.output_dir) / "README.md"
    if not scores and args.resume_from_checkpoint and path.is_file():
        return  # the run was complete: what was measured then is in the card
    table = "Not validated: nothing was kept out."
    if scores:
        rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in scores.items())
        table = f"{what_is_scored}:\n\n| metric | mean |\n|---|---|\n{rows}"
    card = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=list(tags),
        base_model=base if _is_hub_id(args.pretrained_model_name_or_path) else None,
    )
    text = TEXT.format(
        name=_name(args),
        title=title,
        usage=usage,
        base=_public_name(base),
        data=", ".join(_public_name(d["path"] if isinstance(d, dict) else d) for d in args.train_data),
        scores=table,
        settings=json.dumps({key: getattr(args, key) for key in SETTINGS}, indent=2),
    )
    ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(path)


def _name(args: argparse.Namespace) -> str:
    return args.hub_model_id or Path(args.output_dir).resolve().name


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
