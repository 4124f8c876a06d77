"""The flags that the training scripts share, named as in diffusers' training examples, and the settings built of them.

The scripts' `main` calls the `*_settings` functions: the modules below take settings, not flags.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.imports import import_optional
from .data.depth_transforms import AugmentationConfig
from .data.latent_cache import CacheSettings
from .data.samples import DataSettings, SampleSettings
from .model_card import CardFacts
from .settings import LoraSettings, MemorySettings, TrainerSettings


def positive_int(text: str) -> int:
    """Reads an integer of at least 1, as an `argparse` type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def natural_number(text: str) -> int:
    """Reads an integer of at least 0, as an `argparse` type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def fraction(text: str) -> float:
    """Reads a number in [0, 1), as an `argparse` type."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {value}")
    return value


def share(text: str) -> float:
    """Reads a number in [0, 1], as an `argparse` type."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {value}")
    return value


def non_negative(text: str) -> float:
    """Reads a finite number of at least 0, as an `argparse` type."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, got {value}")
    return value


def data_setting(text: str) -> str | dict[str, Any]:
    """Reads a path, or the settings of a data source as a JSON object, as an `argparse` type."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object ({error})") from error


FRAMES_HELP = (
    "Data sources: WebDataset shards (.tar), Parquet files, folders of them, image folders with metadata, folders "
    "with images/ and depth/; or JSON objects with a path and settings (docs/train.md)."
)


def base_parser(description: str, data_help: str = FRAMES_HELP) -> argparse.ArgumentParser:
    """Builds a parser with the flags that every training script has; `--help` shows the defaults.

    Args:
        description: What the script does.
        data_help: What `--train_data` takes.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", help="YAML file of flags without their dashes; flags on the command line win.")
    switch = argparse.BooleanOptionalAction

    data = parser.add_argument_group("data")
    data.add_argument(
        "--train_data",
        nargs="+",
        type=data_setting,
        required=True,
        help=data_help,
    )
    data.add_argument(
        "--streaming", action=switch, default=False, help="Shuffle .tar shards so that they are read nearly in order."
    )
    data.add_argument(
        "--bad_frames",
        choices=["error", "skip"],
        default="error",
        help="A broken frame stops the run, or is left out.",
    )
    data.add_argument("--validation_fraction", type=fraction, default=0.05, help="Share of scenes that are held out.")
    data.add_argument(
        "--min_crop", type=float, default=1.0, help="Smallest side of the random crop, as a share of the frame."
    )
    data.add_argument("--jitter", type=float, default=0.0, help="Strength of colour jitter, in [0, 1).")
    data.add_argument("--flip", action=switch, default=True, help="Mirror half of the samples.")
    data.add_argument("--dataloader_num_workers", type=natural_number, default=0, help="Processes that decode frames.")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", required=True, help="Where checkpoints and the finished model are written.")
    run.add_argument(
        "--seed", type=natural_number, default=0, help="Fixes initial weights, order, augmentation and noise."
    )
    run.add_argument("--resume_from_checkpoint", default=None, help="'latest', or the path of a checkpoint folder.")
    run.add_argument("--checkpointing_steps", type=positive_int, default=500, help="Steps between checkpoints.")
    run.add_argument(
        "--checkpoints_total_limit", type=positive_int, default=None, help="Checkpoints to keep; default: all."
    )
    run.add_argument("--validation_steps", type=positive_int, default=500, help="Steps between validations.")
    run.add_argument(
        "--report_to", default="tensorboard", choices=["tensorboard", "wandb", "all", "none"], help="Tracker."
    )
    run.add_argument("--logging_dir", default="logs", help="Tracker's folder, inside --output_dir.")

    optimization = parser.add_argument_group("optimization")
    optimization.add_argument("--train_batch_size", type=positive_int, default=16, help="Samples per process.")
    optimization.add_argument("--gradient_accumulation_steps", type=positive_int, default=1, help="Batches per step.")
    optimization.add_argument("--max_train_steps", type=positive_int, default=1000, help="Optimizer steps in all.")
    optimization.add_argument("--learning_rate", type=float, default=1e-4, help="Peak learning rate.")
    optimization.add_argument("--lr_scheduler", default="cosine", help="As diffusers' get_scheduler names them.")
    optimization.add_argument("--lr_warmup_steps", type=natural_number, default=100, help="Steps of linear warm-up.")
    optimization.add_argument("--adam_weight_decay", type=float, default=1e-2, help="AdamW's weight decay.")
    optimization.add_argument("--use_8bit_adam", action=switch, default=False, help="bitsandbytes' 8-bit AdamW.")
    optimization.add_argument("--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to this norm.")
    optimization.add_argument(
        "--ema_decay", type=fraction, default=0.999, help="Decay of the averaged weights; 0: no average."
    )
    optimization.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], help="Autocast type; default: accelerate's configuration."
    )
    optimization.add_argument(
        "--channels_last", action=switch, default=False, help="Memory format of weights and images."
    )
    optimization.add_argument("--torch_compile", action=switch, default=False, help="Compile the trained network.")
    return parser


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the latent cache."""
    cache = parser.add_argument_group("latent cache")
    cache.add_argument(
        "--cache_latents",
        type=natural_number,
        default=0,
        help="Augmented variants of each frame to encode once; 0: encode in every step.",
    )
    cache.add_argument("--latent_cache_dir", default=None, help="Folder of the caches; default: in --output_dir.")


def add_lora_flags(parser: argparse.ArgumentParser, rank_help: str, target_modules: Sequence[str]) -> None:
    """Adds the flags of LoRA.

    Args:
        parser: Gets the flags.
        rank_help: Help of `--lora_rank`.
        target_modules: Default endings of the names of the layers that get an adapter.
    """
    lora = parser.add_argument_group("LoRA")
    lora.add_argument("--lora_rank", type=natural_number, default=0, help=rank_help)
    lora.add_argument(
        "--lora_alpha", type=float, default=None, help="Adapters are scaled by this / rank; default: the rank."
    )
    lora.add_argument(
        "--lora_target_modules", nargs="+", default=list(target_modules), help="Layers that get an adapter."
    )


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `MemorySettings`, but the memory format."""
    memory, switch = parser.add_argument_group("memory"), argparse.BooleanOptionalAction
    memory.add_argument(
        "--gradient_checkpointing",
        action=switch,
        default=False,
        help="Compute activations again in the backward pass.",
    )
    memory.add_argument(
        "--enable_xformers_memory_efficient_attention", action=switch, default=False, help="Use xformers."
    )


def add_hub_flags(group: argparse._ArgumentGroup) -> None:
    """Adds the flags of the upload."""
    switch = argparse.BooleanOptionalAction
    group.add_argument("--push_to_hub", action=switch, default=False, help="Upload the result.")
    group.add_argument("--hub_model_id", default=None, help="Repository to upload to; default: --output_dir's name.")


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; flags override the file that `--config` names.

    The file is YAML: flags without their dashes, lists for flags of several values, true and false for switches. A
    `run_config.json` of an earlier run works as well. Errors end the program and name file and key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(argv)[0].config
    if config is None:
        return parser.parse_args(argv)
    return parser.parse_args([*_flags_of(Path(config), parser), *argv])


def _flags_of(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    yaml: Any = import_optional("yaml", "train", "--config")

    class Loader(yaml.SafeLoader):
        """Reads 1e-4 as a number, where YAML 1.1 asks for 1.0e-4."""

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        settings = yaml.load(path.read_text(), Loader=Loader)
    except OSError as error:
        parser.error(f"--config: cannot read {path} ({error.strerror})")
    except yaml.YAMLError as error:
        parser.error(f"--config: {path} is not YAML ({error})")
    if isinstance(settings, dict) and isinstance(settings.get("settings"), dict):
        settings = settings["settings"]
    if not isinstance(settings, dict):
        parser.error(f"--config: {path} is not a mapping of flags to values")
    actions = {option.removeprefix("--"): a for a in parser._actions for option in a.option_strings}
    flags: list[str] = []
    for name, value in settings.items():
        action = actions.get(name)
        if action is None or name == "config":
            if name == "config" and value is None:
                continue
            parser.error(f"--config: {path} has {name!r}, which is no flag of this script")
        if value is None:
            continue
        if isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                parser.error(f"--config: {path}: {name} must be true or false, got {value!r}")
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return flags


def trainer_settings(args: argparse.Namespace) -> TrainerSettings:
    """Builds the settings of the run from the flags of `base_parser`."""
    flags = {field.name: getattr(args, field.name) for field in fields(TrainerSettings)}
    return TrainerSettings(**flags | {"output_dir": Path(args.output_dir)})


def data_settings(args: argparse.Namespace) -> DataSettings:
    """Builds the settings of the data from the flags of `base_parser`."""
    return DataSettings(tuple(args.train_data), args.streaming, args.validation_fraction)


def sample_settings(args: argparse.Namespace) -> SampleSettings:
    """Builds the settings of the samples from the flags of `base_parser`, and `--resolution` where it exists."""
    resolution = getattr(args, "resolution", None)
    return SampleSettings(
        augmentation=AugmentationConfig(flip=args.flip, min_crop=args.min_crop, jitter=args.jitter),
        resolution=resolution and (resolution[0], resolution[1]),
        seed=args.seed,
        skip_bad_frames=args.bad_frames == "skip",
    )


def cache_settings(args: argparse.Namespace) -> CacheSettings | None:
    """Builds the settings of the latent cache from the flags of `add_cache_flags`; `None`: no cache."""
    if args.cache_latents == 0:
        return None
    folder = Path(args.latent_cache_dir or Path(args.output_dir) / "latents")
    return CacheSettings(folder, args.cache_latents, args.train_batch_size)


def lora_settings(args: argparse.Namespace) -> LoraSettings | None:
    """Builds the settings of the adapters from the flags of `add_lora_flags`; `None`: no adapters."""
    if args.lora_rank == 0:
        return None
    alpha = args.lora_rank if args.lora_alpha is None else args.lora_alpha
    return LoraSettings(args.lora_rank, alpha, tuple(args.lora_target_modules))


def memory_settings(args: argparse.Namespace) -> MemorySettings:
    """Builds the memory settings from the flags of `add_memory_flags` and `--channels_last`."""
    return MemorySettings(
        args.gradient_checkpointing, args.enable_xformers_memory_efficient_attention, args.channels_last
    )


def hub_model_id(args: argparse.Namespace) -> str | None:
    """Returns the repository that the result is to be uploaded to; `None`: it is not."""
    return (args.hub_model_id or Path(args.output_dir).name) if args.push_to_hub else None


def card_facts(args: argparse.Namespace, base: str) -> CardFacts:
    """Collects what the model's card says, from the flags.

    Args:
        args: The flags.
        base: What training started from.
    """
    names = ["learning_rate", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "seed"]
    names += [name for name in ("depth_normalization", "depth_quantiles", "depth_cap") if hasattr(args, name)]
    return CardFacts(
        output_dir=Path(args.output_dir),
        name=args.hub_model_id or Path(args.output_dir).resolve().name,
        base=base,
        data=tuple(source["path"] if isinstance(source, dict) else source for source in args.train_data),
        settings={name: getattr(args, name) for name in names},
        resumed=args.resume_from_checkpoint is not None,
    )
