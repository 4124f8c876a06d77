"""The card of a trained folder, its README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..pretrained.bundled import default_model_path

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
COMPLETION_TITLE = """Depth completion, and monocular depth where no depth is known, by flow matching
([DepthFM](https://arxiv.org/abs/2403.13788)), trained with `depthfm_diffusers`. The model takes an image and depth in
metres at some of its pixels, and predicts metres; `DepthFMPipeline` predicts relative depth from the image alone."""
CONTROLNET_TITLE = """ControlNet that makes Stable Diffusion follow a depth, trained with `depthfm_diffusers` on the
depth that [DepthFM](https://arxiv.org/abs/2403.13788) ({depth_model}) estimates. Control images are of mode
`{control_mode}` ({polarity}), percentiles {percentiles}."""
WHOLE_MODEL = """import depthfm_diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}")
{call}"""
COMPLETION_MODEL = """from depthfm_diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{name}")
{call}"""
ADAPTERS = """from depthfm_diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{base}")
pipe.load_lora_weights("{name}")
{call}"""
CONTROLNET = """from depthfm_diffusers import DepthFMControlNetPipeline, DepthFMPipeline, default_model_path
from diffusers import ControlNetModel, StableDiffusionPipeline

pipe = DepthFMControlNetPipeline.from_pipelines(
    StableDiffusionPipeline.from_pretrained("{base}"),
    DepthFMPipeline.from_pretrained({depth_source}),
    controlnet=ControlNetModel.from_pretrained("{name}"),
)
output = pipe("a prompt", image, control_mode="{control_mode}", control_percentiles={percentiles})"""


@dataclass(frozen=True)
class CardFacts:
    """What the cards of all models say.

    Attributes:
        output_dir: Folder of the model.
        name: Name of the model: its repository, or its folder's name.
        base: What training started from: folder, Hub repository or file.
        data: Paths of the data sources.
        settings: The flags that the card shows.
        resumed: Whether the run was resumed: one that was complete already keeps its card.
    """

    output_dir: Path
    name: str
    base: str
    data: tuple[str, ...]
    settings: Mapping[str, Any]
    resumed: bool


@dataclass(frozen=True)
class ControlNetFacts:
    """What the card of a ControlNet says besides.

    Attributes:
        depth_model: DepthFM that estimated the depth of the training images.
        control_mode: Mode of the control images.
        percentiles: Percentiles of the depth that became black and white.
        images: Held-out images that were validated, at most.
        steps: Inference steps of the validation.
        guidance_scale: Weight of the prompt in the validation.
    """

    depth_model: str
    control_mode: str
    percentiles: tuple[float, float]
    images: int
    steps: int
    guidance_scale: float


def write_model_card(
    facts: CardFacts, scores: Mapping[str, float], lora: bool, validation_frames: int, completion: bool = False
) -> None:
    """Writes the card of a depth model.

    Args:
        facts: Of the run.
        scores: Of the last validation; empty if nothing was validated.
        lora: Whether the model is adapters for a base.
        validation_frames: Held-out frames that were scored, at most.
        completion: Whether the model completes depth.
    """
    pipeline, call = "DepthFMPipeline", "depth = pipe(image).prediction"
    if completion:
        pipeline = "DepthFMDepthCompletionPipeline"
        call = "depth = pipe(image, known_depth).depth  # metres; known_depth is 0 where nothing is known"
    text = ADAPTERS if lora else COMPLETION_MODEL if completion else WHOLE_MODEL
    usage = text.format(name=facts.name, base=_public_name(facts.base), pipeline=pipeline, call=call)
    what = (
        f"Scores of 1 step on at most {validation_frames} frames of held-out scenes (`_depth`, `_log`: aligned by "
        "least squares in depth or in log depth)"
    )
    if completion:
        what += "; `completion_mae` in metres and `completion_abs_rel`: completed from simulated points, not aligned"
    more = (("lora", lora), ("depth-completion", completion))
    tags = ["depth-estimation", "flow-matching", "depthfm", *(tag for tag, applies in more if applies)]
    _write(facts, COMPLETION_TITLE if completion else DEPTH_TITLE, usage, what, scores, "depth-estimation", tags)


def write_controlnet_card(facts: CardFacts, control: ControlNetFacts, scores: Mapping[str, float]) -> None:
    """Writes the card of a depth ControlNet.

    Args:
        facts: Of the run.
        control: Of the ControlNet.
        scores: Of the last validation; empty if nothing was validated.
    """
    bundled = Path(control.depth_model).resolve() == default_model_path().resolve()
    values = asdict(control) | {
        "name": facts.name,
        "base": _public_name(facts.base),
        "depth_model": _public_name(control.depth_model),
        "depth_source": "default_model_path()" if bundled else f'"{_public_name(control.depth_model)}"',
        "polarity": "near is white" if control.control_mode == "disparity" else "near is black",
    }
    what = (
        f"Depth adherence of at most {control.images} held-out images ({control.steps} steps, guidance "
        f"{control.guidance_scale}): the depth estimated from the generated image against the depth it was generated "
        "by, aligned in log depth"
    )
    tags = ["controlnet", "stable-diffusion", "depth", "depthfm"]
    title, usage = CONTROLNET_TITLE.format(**values), CONTROLNET.format(**values)
    _write(facts, title, usage, what, scores, "text-to-image", tags)


def _write(
    facts: CardFacts,
    title: str,
    usage: str,
    what_is_scored: str,
    scores: Mapping[str, float],
    task: str,
    tags: Sequence[str],
) -> None:
    path = facts.output_dir / "README.md"
    if not scores and facts.resumed and path.is_file():
        return  # the run was complete: its card has the scores
    table = "Not validated: no frames were held out."
    if scores:
        rows = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in scores.items())
        table = f"{what_is_scored}:\n\n| metric | mean |\n|---|---|\n{rows}"
    card = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=list(tags),
        base_model=None if Path(facts.base).exists() else facts.base,
    )
    text = TEXT.format(
        name=facts.name,
        title=title,
        usage=usage,
        base=_public_name(facts.base),
        data=", ".join(map(_public_name, facts.data)),
        scores=table,
        settings=json.dumps(dict(facts.settings), indent=2),
    )
    ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(path)


def _public_name(path: str) -> str:
    """Returns the last part of a local path: where it is on this machine is private."""
    return Path(path).name if Path(path).exists() else path
