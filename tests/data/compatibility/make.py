"""Makes what an earlier version left on disk: `python tests/data/compatibility/make.py CHECKOUT VERSION`.

`CHECKOUT` is a checkout of that version: commit 1196cf3 is 0.1.0, b31f10c 0.2.0, d1b54cc 0.3.0, 7d8f591 0.4.0.
Everything is written below `VERSION/` beside this file, with paths relative to it, from tiny random networks. A new
release is added by a run on its own checkout; what is there is never made again, for the tests are about these files.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
WIDTH = 8  # of the text embeddings
UNET = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
    "use_linear_projection": True,
}
TRAINING = [
    *("--train_batch_size", "2", "--checkpointing_steps", "2", "--validation_fraction", "0", "--report_to", "none"),
    *("--learning_rate", "1e-3", "--lr_warmup_steps", "1", "--max_train_steps", "4"),
]
FLOW = [
    *("--train_data", "frames", "--vae", "parts/vae", "--unet_config", "parts/unet.json"),
    *("--output_dir", "train_depthfm", "--cache_latents", "1", *TRAINING),
]
CONTROLNET = [
    *("--pretrained_model_name_or_path", "stable_diffusion", "--depth_model", "depthfm", "--train_data", "photos"),
    *("--conditioning_embedding_out_channels", "4", "4", "8", "8", "--output_dir", "train_depth_controlnet"),
    *("--cache_latents", "1", *TRAINING),
]
EVALUATE = ["evaluate", "--benchmark", "pairs", "--root", "frames", "--model", "depthfm", "--threads", "1"]
ADHERENCE = [
    *("adherence", "photos", "--base", "depthfm_controlnet"),
    *("--steps", "2", "--guidance-scale", "1", "--threads", "1"),
]


def build_vae() -> AutoencoderKL:
    """A random 8x autoencoder."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.3,
    ).eval()


def build_unet(**changes: object) -> UNet2DConditionModel:
    """A random UNet."""
    torch.manual_seed(1)
    return UNet2DConditionModel(**{**UNET, **changes}).eval()


def build_stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    """A random Stable Diffusion whose tokenizer knows two words."""
    words = folder.with_name("words")
    words.mkdir()
    vocabulary = ["!", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "pad_token": "<|endoftext|>"}
    (words / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(2)
    text = CLIPTextConfig(
        vocab_size=4,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=2,
        eos_token_id=3,
    )
    pipe = StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(words),
        unet=build_unet(in_channels=4),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(words)
    return pipe


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A random ControlNet that has an effect: its last convolutions are not zero."""
    torch.manual_seed(3)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8)).eval()
    for name, parameter in controlnet.named_parameters():
        if "controlnet" in name or "conv_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return controlnet


def build_depthfm(package: object, **settings: object) -> object:
    """A random `DepthFMPipeline` of a version."""
    torch.manual_seed(4)
    prompt_embedding = package.PromptEmbedding(num_tokens=4, dim=WIDTH)
    torch.nn.init.normal_(next(prompt_embedding.parameters()))
    scheduler = package.FlowMatchingImageToDepthScheduler()
    components = {"unet": build_unet(), "vae": build_vae(), "prompt_embedding": prompt_embedding.eval()}
    return package.DepthFMPipeline(**components, scheduler=scheduler, default_processing_resolution=64, **settings)


def picture(number: int) -> np.ndarray:
    """A smooth image, 48×64×3, uint8."""
    y, x = np.mgrid[0:48, 0:64].astype(np.float32)
    channels = [np.sin(x / 9 + number), np.cos(y / 7 - number), np.sin((x + y) / 13 + 2 * number)]
    return np.stack([(c * 127 + 128).astype(np.uint8) for c in channels], axis=-1)


def write_frames() -> None:
    """Four pairs of an image and its depth, in millimetres, and four photos with captions."""
    for folder in ("frames/images", "frames/depth", "photos"):
        Path(folder).mkdir(parents=True)
    rows = []
    for number in range(4):
        depth = np.linspace(9000, 1000, 48)[:, None].repeat(64, 1)
        depth[16:40, 8 * number : 8 * number + 20] = 800 + 100 * number
        depth[:4] = 0
        Image.fromarray(picture(number)).save(f"frames/images/{number}.png")
        Image.fromarray(depth.astype(np.uint16)).save(f"frames/depth/{number}.png")
        Image.fromarray(picture(number + 4)).save(f"photos/{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "a" if number % 2 else ""}))
    Path("photos/metadata.jsonl").write_text("\n".join(rows) + "\n")


def save_model(package: object, name: str, **settings: object) -> None:
    """A model folder and what it predicts: `NAME.npz`, with the arrays `prediction` and `log_depth`."""
    build_depthfm(package, **settings).save_pretrained(name)
    pipe = package.DepthFMPipeline.from_pretrained(name)
    output = pipe(Image.fromarray(picture(0)), generator=torch.Generator().manual_seed(0))
    np.savez(f"{name}.npz", prediction=output.prediction, log_depth=output.log_depth)


def save_controlnet_pipeline(package: object) -> None:
    """A folder with Stable Diffusion, a ControlNet and DepthFM, and the image that it makes."""
    stable = build_stable_diffusion(Path("stable_diffusion"))
    controlnet = build_controlnet(stable.unet)
    estimator = build_depthfm(package)
    pipe = package.DepthFMControlNetPipeline.from_pipelines(stable, estimator, controlnet=controlnet)
    pipe.save_pretrained("depthfm_controlnet")
    pipe = package.DepthFMControlNetPipeline.from_pretrained("depthfm_controlnet")
    generator = torch.Generator().manual_seed(0)
    image = pipe("a", Image.fromarray(picture(0)), num_inference_steps=2, generator=generator, output_type="np").images
    np.savez("depthfm_controlnet.npz", image=image.astype(np.float32))


def stopped(results: object, cli: object, words: list[str]) -> None:
    """Runs a command that is interrupted after its second image."""
    add, count = results.ResultWriter.add, 0

    def add_or_stop(self: object, entry: object) -> None:
        nonlocal count
        if count == 2:
            raise KeyboardInterrupt
        count += 1
        add(self, entry)

    results.ResultWriter.add = add_or_stop
    try:
        code = cli.main(words)
    except KeyboardInterrupt:
        code = None
    results.ResultWriter.add = add
    if code == 0:
        raise RuntimeError(f"{words} was not stopped")


def train(script: str, flags: list[str]) -> None:
    """Trains for four steps; keeps the checkpoint of the second, the cache, and the final weights beside the run."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    importlib.import_module(script).main(flags)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    run = Path(script)
    trained = run / "unet" if (run / "unet").is_dir() else run
    (trained / "diffusion_pytorch_model.safetensors").rename(f"{script}.safetensors")
    for path in run.iterdir():
        if path.name not in ("checkpoint-2", "run_config.json", "latents"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main(checkout: Path, version: str) -> None:
    """Writes all that the version knows how to."""
    sys.path[:0] = [str(checkout), str(checkout / "training")]
    torch.set_num_threads(1)
    (HERE / version).mkdir()
    os.chdir(HERE / version)
    package = importlib.import_module("depthfm_diffusers")
    if package.__version__ != version or not Path(package.__file__).is_relative_to(checkout):
        raise SystemExit(f"{package.__file__} is version {package.__version__}, not {version} of {checkout}")
    if version == "0.2.0":
        save_model(package, "depthfm_rescaled", rescale_self_attention=True, default_num_inference_steps=1)
    elif version != "0.3.0":
        save_model(package, "depthfm")
    if version >= "0.3.0":
        save_controlnet_pipeline(package)
    if version >= "0.4.0":
        write_frames()
        cli = importlib.import_module("depthfm_diffusers.cli")
        results = importlib.import_module("depthfm_diffusers.evaluation.result_files")
        build_stable_diffusion(Path("stable_diffusion")).save_pretrained("stable_diffusion")
        build_vae().save_pretrained("parts/vae")
        Path("parts/unet.json").write_text(json.dumps(dict(build_unet().config)))
        for words in (
            ["predict", "photos/0.png", "--model", "depthfm", "--output", "predicted"],
            [*EVALUATE, "--output", "evaluate.json"],
            [*ADHERENCE, "--output", "adherence.json"],
        ):
            if cli.main(words) != 0:
                raise RuntimeError(f"{words} failed")
        for sheet in Path().glob("*.png"):
            sheet.unlink()
        metadata = Path("predicted/metadata.json")
        metadata.write_text(metadata.read_text().replace(str(Path.cwd()), "/where/this/was/made"))
        stopped(results, cli, [*EVALUATE, "--output", "evaluate_stopped.json"])
        stopped(results, cli, [*ADHERENCE, "--output", "adherence_stopped.json"])
        train("train_depthfm", FLOW)
        train("train_depth_controlnet", CONTROLNET)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
