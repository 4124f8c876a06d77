"""Pipeline from images and partial depth to dense metric depth."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from ...image_processing import ProcessedImage, process_images, resize, unpad
from ...utils.choices import COMPLETION_METHODS
from ..pipeline_output import CompletionFit, DepthFMDepthCompletionOutput, collect_maps
from . import checks
from .completion.affine_fit import fit_log_affine
from .completion.correction import complete
from .completion.guided_flow import guide_flow
from .completion.known_depth import KnownDepth, read_known_depths
from .completion.latent_optimization import PointReader, float_autoencoder, optimize_latents
from .further_channels import further_channels
from .image_maps import decode_log_depth, latent_size
from .pipeline_depthfm import DepthFMPipeline
from .trained_completion import flow_with_points

GUIDED_STEPS = 50  # Marigold-DC's


class DepthFMDepthCompletionPipeline(DepthFMPipeline):
    """Pipeline that completes sparse or partial metric depth with the depth that DepthFM sees in the image.

    It loads any model of `DepthFMPipeline`. The flow is run once. A model that was trained for completion takes the
    points as a further input, and what it predicts is in metres. The output latent may then be optimised against the
    known points, through the decoder only. Log depth becomes metres by a robust fit, and what is left at the points is
    interpolated between them, up to the edges of the image and of the prediction.

    ```python
    pipe = DepthFMDepthCompletionPipeline.from_pretrained(default_model_path())
    output = pipe(load_image("photo.jpg"), depth, generator=torch.Generator().manual_seed(0))  # depth: H×W, 0 = hole
    output.depth  # 1×H×W×1, metres
    output.uncertainty  # 1×H×W×1, metres
    ```

    Large images: the flow and the decoder work at `processing_resolution` (and in tiles after
    `pipe.vae.enable_tiling()`), the interpolation in windows, at 1,024 pixels of the longer side at most; memory does
    not grow with the number of points.

    Args are those of `DepthFMPipeline`.
    """

    def check_completion_inputs(
        self,
        method: str,
        num_optimization_steps: int,
        guided_flow: bool,
        max_seconds: float | None,
        output_type: str,
    ) -> None:
        """Checks the arguments that `DepthFMPipeline` does not have.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of its range.
        """
        if method not in COMPLETION_METHODS:
            raise ValueError(f"`method` must be one of {COMPLETION_METHODS}, got {method!r}.")
        if method == "trained" and not self.takes_partial_depth:
            raise ValueError(
                "`method='trained'` needs a model that was trained with `train_depthfm.py --completion`: this one "
                "takes no partial depth. Use 'auto' or 'optimize'."
            )
        if method == "trained" and guided_flow:
            raise ValueError("`guided_flow=True` steers a flow that does not see the points: not with 'trained'.")
        checks.as_integer("num_optimization_steps", num_optimization_steps, 0)
        if output_type not in ("np", "pt"):
            raise ValueError(f"`output_type` must be 'np' or 'pt', got {output_type!r}.")
        if max_seconds is not None and not (math.isfinite(max_seconds) and max_seconds > 0):
            raise ValueError(f"`max_seconds` must be a positive number or None, got {max_seconds!r}.")
        if guided_flow and self.scheduler.order != 1:
            raise ValueError("`guided_flow=True` needs a solver of one evaluation per step: solver_type='euler'.")

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: Any,
        depth: Any,
        mask: Any = None,
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        resample_method_input: str = "bilinear",
        batch_size: int = 1,
        latents: torch.Tensor | list[torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        method: str = "auto",
        num_optimization_steps: int = 0,
        guided_flow: bool = False,
        correct_residual: bool = True,
        keep_known: bool = False,
        max_seconds: float | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> DepthFMDepthCompletionOutput | tuple:
        """Completes depth.

        Args:
            image: One image or a list of them, as `DepthFMPipeline` takes them.
            depth: Known depth along the optical axis, in metres, floats of the size of the image: H×W (axes of length
                1 before or after are accepted). 0 and NaN are holes. For several images a list, or N×H×W. At least
                two pixels must be known. Where all have one depth, the range of the rest is an assumption.
            mask: Bool, of the shape of `depth`: where it may be used. `None`: wherever it is neither 0 nor NaN.
            num_inference_steps: Steps of the solver; `None`: the model's default, with `guided_flow` 50.
            ensemble_size: Number of members E: predictions from different noise, and optimised with other points set
                aside. Their log depth is averaged, their spread is a part of the uncertainty.
            processing_resolution: As for `DepthFMPipeline`.
            resample_method_input: As for `DepthFMPipeline`.
            batch_size: Number of images × members that go through a network of the flow at once.
            latents: As for `DepthFMPipeline`.
            generator: As for `DepthFMPipeline`.
            method: `"trained"`: the network takes the points as a further input; for models that were trained with
                `--completion`. `"optimize"`: it sees the image alone. `"auto"`: `"trained"` if the model can, unless
                `guided_flow` is asked for.
            num_optimization_steps: Steps of Adam, at most, in which the output latent is optimised; 0: none. A fifth
                of the points is set aside to tell when to stop. Needs 10 points, and is left out with fewer. Most of
                what it gains, the interpolation gains too: it is for `correct_residual=False`, and worth a try with
                few points.
            guided_flow: Whether the points steer the flow itself, by the gradient through the UNet, at each step: the
                algorithm of Marigold-DC. Takes much longer and more memory.
            correct_residual: Whether what is left at the points is interpolated at the end.
            keep_known: Whether known values are returned exactly as they are. Otherwise a point that contradicts the
                others is corrected.
            max_seconds: Time after which no further step of the optimisation, or of the guidance, is begun. The flow
                and the interpolation are always completed.
            output_type: `"np"` for arrays or `"pt"` for tensors.
            return_dict: Whether to return a `DepthFMDepthCompletionOutput` instead of a tuple of its fields.

        Returns:
            `DepthFMDepthCompletionOutput`, or the tuple (depth, uncertainty, fits).

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument, an image or a depth map is not acceptable; nothing has been computed then.
            RuntimeError: If a network's output is not finite (float16 overflow, most likely).
        """
        deadline = None if max_seconds is None else time.monotonic() + max_seconds
        if num_inference_steps is None:
            num_inference_steps = GUIDED_STEPS if guided_flow else self.default_num_inference_steps
        if processing_resolution is None:
            processing_resolution = self.default_processing_resolution

        # 1. Check the arguments; no mistake of the caller may cause an error after this.
        methods = (resample_method_input, "bilinear")
        settings = (num_inference_steps, ensemble_size, processing_resolution, *methods, batch_size)
        self.check_inputs(*settings, generator, "latent", False, False, None, 55.0)
        self.check_completion_inputs(method, num_optimization_steps, guided_flow, max_seconds, output_type)
        is_trained = method != "optimize" and self.takes_partial_depth and not guided_flow
        device = self._execution_device
        images = process_images(image, processing_resolution, resample_method_input, self.vae_scale_factor)
        originals = process_images(image, 0, resample_method_input, 1)
        sizes = [one.original_size for one in images]
        knowns = read_known_depths(depth, mask, sizes, device)
        latent_sizes = [latent_size(one, self.vae_scale_factor) for one in images]
        noise = self.prepare_latents(latent_sizes, ensemble_size, latents, generator)

        # 2. The flow: with the points as an input, guided by them, or by itself.
        own_pairs: list[tuple[float, float] | None] = [None] * len(images)
        if is_trained:
            results, own_pairs = self.flow_with_points(images, knowns, noise, num_inference_steps, batch_size)
        elif guided_flow:
            results = [
                torch.cat([self.guide(one, known, draw, num_inference_steps, deadline) for draw in draws.split(1)])
                for one, known, draws in zip(images, knowns, noise, strict=True)
            ]
        else:
            *_, found = super().__call__(
                image,
                num_inference_steps,
                ensemble_size,
                processing_resolution,
                resample_method_input=resample_method_input,
                batch_size=batch_size,
                latents=noise,
                output_type="latent",
                output_latent=True,
                return_dict=False,
            )
            results = list(found.split(ensemble_size)) if isinstance(found, torch.Tensor) else found

        # 3. Each image by itself: optimise the latents, fit a and b, correct what is left.
        vae = float_autoencoder(self.vae) if num_optimization_steps > 0 else self.vae
        parts = []
        for one, original, known, members, own in zip(images, originals, knowns, results, own_pairs, strict=True):
            read = PointReader(known.known, one.padding)
            target = known.log_depth[known.known]
            with self.progress_bar(total=num_optimization_steps) as progress_bar:
                optimized = optimize_latents(
                    members,
                    lambda x: decode_log_depth(vae, x),
                    read,
                    target,
                    one.pixels.to(device),
                    num_optimization_steps,
                    deadline,
                    progress_bar.update,
                )
            checks.check_finite(optimized.log_depth, "decoded maps", "vae", vae.dtype)
            if own is not None and optimized.steps == 0:
                pairs = [own] * len(members)
            else:
                pairs = [fit_log_affine(y, target) for y in read(optimized.log_depth)]
            maps = resize(unpad(optimized.log_depth, one.padding), one.original_size, "bilinear")
            metric = torch.cat([a * y + b for (a, b), y in zip(pairs, maps, strict=True)])
            pixels = (original.pixels[0].to(device) + 1) / 2
            completed = complete(metric, pixels, known, correct_residual, keep_known)
            a, b = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
            parts.append((completed, CompletionFit(a, b, len(target), optimized.steps, *completed.fit)))
        self.maybe_free_model_hooks()

        one_size = len(set(sizes)) == 1
        output = DepthFMDepthCompletionOutput(
            depth=collect_maps([completed.depth[None, None] for completed, _ in parts], one_size, output_type),
            uncertainty=collect_maps([one.uncertainty[None, None] for one, _ in parts], one_size, output_type),
            fits=[fit for _, fit in parts],
        )
        return output if return_dict else (output.depth, output.uncertainty, output.fits)

    def flow_with_points(
        self,
        images: Sequence[ProcessedImage],
        knowns: Sequence[KnownDepth],
        noise: Sequence[torch.Tensor],
        num_inference_steps: int,
        batch_size: int,
    ) -> tuple[list[torch.Tensor], list[tuple[float, float] | None]]:
        """Runs the flow of a model that takes partial depth, see `trained_completion`.

        Args:
            images: The images.
            knowns: What is known of each.
            noise: Gaussian noise of the source of each, E×C×h×w.
            num_inference_steps: Steps of the solver.
            batch_size: Number of members that go through a network at once.

        Returns:
            Of each image the latents at t = 1, E×C×h×w, and the network's own scale and shift of log depth.
        """
        results: list[torch.Tensor] = []
        pairs: list[tuple[float, float] | None] = []
        batches = sum(math.ceil(len(one) / batch_size) for one in noise)
        with self.progress_bar(total=batches * num_inference_steps * self.scheduler.order) as progress_bar:
            for image, known, members in zip(images, knowns, noise, strict=True):
                points = torch.where(known.known, known.metres, 0)[None]
                flow = num_inference_steps, batch_size, progress_bar.update
                latents, pair = flow_with_points(self, image, points, members, *flow)
                checks.check_finite(latents, "predicted latents", "unet", self.unet.dtype)
                results.append(latents)
                pairs.append(pair)
        return results, pairs

    def guide(
        self,
        image: ProcessedImage,
        known: KnownDepth,
        noise: torch.Tensor,
        num_inference_steps: int,
        deadline: float | None,
    ) -> torch.Tensor:
        """Runs the flow of one member, guided by the points; see `completion.guided_flow`.

        Args:
            image: The image.
            known: What is known of it.
            noise: Gaussian noise of the source, 1×C×h×w.
            num_inference_steps: Steps of the solver.
            deadline: `time.monotonic()` after which the rest of the flow is not guided.

        Returns:
            The latent at t = 1, 1×C×h×w.
        """
        device = self._execution_device
        pixels = image.pixels.to(device)
        encoded = self.encode_image(pixels)
        condition = torch.cat([encoded, further_channels(self, pixels, 1)], dim=1)
        prompt_embeds = self.prompt_embedding(1).to(device)
        read = PointReader(known.known, image.padding)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            return guide_flow(
                self.scheduler,
                encoded,
                noise,
                lambda x, t: self.predict_velocity(x, condition, t, prompt_embeds),
                lambda x: read(self.decode_depth(x)),
                known.log_depth[known.known],
                num_inference_steps,
                deadline,
                progress_bar.update,
            )[0]
