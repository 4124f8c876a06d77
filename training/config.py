"""Command-line flags that the training scripts share, named as in diffusers' training examples."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """An `argparse` type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def fraction(text: str) -> float:
    """An `argparse` type: a number in [0, 1)."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {value}")
    return value


def base_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every training script has; `--help` shows the defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument("--train_data", nargs="+", required=True, help="WebDataset shards (.tar) or folders of them.")
    data.add_argument("--validation_fraction", type=fraction, default=0.05, help="Share of scenes kept out.")
    data.add_argument("--min_crop", type=float, default=1.0, help="Smallest random crop, as a share of the side.")
    data.add_argument("--jitter", type=float, default=0.0, help="Strength of colour jitter, in [0, 1).")
    data.add_argument("--dataloader_num_workers", type=int, default=0, help="Processes that decode frames.")

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", required=True, help="Where checkpoints and the finished model are written.")
    run.add_argument("--seed", type=int, default=0, help="Fixes weights, order, augmentation and noise.")
    run.add_argument("--resume_from_checkpoint", default=None, help="'latest', or the path of a checkpoint folder.")
    run.add_argument("--checkpointing_steps", type=positive_int, default=500, help="Steps between checkpoints.")
    run.add_argument("--checkpoints_total_limit", type=positive_int, default=None, help="Older ones are removed.")
    run.add_argument("--validation_steps", type=positive_int, default=500, help="Steps between validations.")
    run.add_argument("--report_to", default="tensorboard", choices=["tensorboard", "none"], help="Tracker.")
    run.add_argument("--logging_dir", default="logs", help="Tracker's folder, inside --output_dir.")

    optimization = parser.add_argument_group("optimization")
    optimization.add_argument("--train_batch_size", type=positive_int, default=16, help="Samples per process.")
    optimization.add_argument("--gradient_accumulation_steps", type=positive_int, default=1, help="Batches per step.")
    optimization.add_argument("--max_train_steps", type=positive_int, default=1000, help="Optimizer steps in all.")
    optimization.add_argument("--learning_rate", type=float, default=1e-4, help="Peak learning rate.")
    optimization.add_argument("--lr_scheduler", default="cosine", help="As diffusers' get_scheduler names them.")
    optimization.add_argument("--lr_warmup_steps", type=int, default=100, help="Steps of linear warm-up.")
    optimization.add_argument("--adam_weight_decay", type=float, default=1e-2, help="AdamW's weight decay.")
    optimization.add_argument("--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to this norm.")
    optimization.add_argument("--ema_decay", type=fraction, default=0.999, help="Of the averaged weights; 0: none.")
    optimization.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], help="Autocast type; default: accelerate's configuration."
    )
    optimization.add_argument("--channels_last", action="store_true", help="Memory format of weights and images.")
    return parser
