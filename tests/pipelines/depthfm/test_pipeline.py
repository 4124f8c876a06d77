"""The pipeline's results: against a straightforward reference, and against itself in other groupings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from helpers.components import build_components, build_unet
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, FlowMatchingImageToDepthScheduler
from depthfm_diffusers.geometry import depth_to_normals, intrinsics_from_fov
from depthfm_diffusers.image_processing import depth_from_log_depth, resize
from depthfm_diffusers.pipelines.depthfm.ensembling import ensemble_uncertainty

# Latent of the 72x48 picture at the default 64 pixels: 64x43, an eighth of it rounded up.
LATENT = (4, 6, 8)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(count: int, latent: tuple[int, ...] = LATENT) -> torch.Tensor:
    return torch.randn(count, *latent, generator=torch.Generator().manual_seed(1))


def other_picture(width: int = 72, height: int = 48) -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).resize((width, height))


def largest_difference(a, b) -> float:
    return float(abs(a - b).max())


@torch.no_grad()
def test_the_pipeline_is_its_formula(pipe, components):
    """Euler written out by hand on an image that needs neither resizing nor padding (1e-5)."""
    torch.manual_seed(0)
    image, epsilon = torch.rand(1, 3, 48, 64), noise(1)
    unet, vae = components["unet"], components["vae"]
    condition = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    # The cosine schedule at step 400 of 1000.
    alpha_bar = torch.sigmoid(-2 * torch.log(torch.tan(torch.tensor(torch.pi * 0.4 / 2)) + 1e-5))
    x = alpha_bar.sqrt() * condition + (1 - alpha_bar).sqrt() * epsilon
    for t in (0.0, 0.25, 0.5, 0.75):
        embedding = components["prompt_embedding"]()
        x = x + unet(torch.cat([x, condition], dim=1), torch.tensor(t), embedding).sample / 4
    log_depth = vae.decode(x / vae.config.scaling_factor).sample.mean(dim=1, keepdim=True)
    depth = (log_depth.exp() - log_depth.exp().min()) / (log_depth.exp().max() - log_depth.exp().min())

    output = pipe(image, num_inference_steps=4, latents=epsilon, output_type="pt", output_latent=True)
    torch.testing.assert_close(output.latent, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.log_depth, log_depth, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.prediction, depth, rtol=0, atol=1e-5)


def test_output_types_agree(pipe, image):
    arrays = pipe(image, latents=noise(1))
    tensors = pipe(image, latents=noise(1), output_type="pt")
    (picture,) = pipe(image, latents=noise(1), output_type="pil").prediction
    assert arrays.prediction.shape == arrays.log_depth.shape == (1, 48, 72, 1)
    assert arrays.prediction.dtype == arrays.log_depth.dtype == np.float32
    assert tensors.prediction.shape == (1, 1, 48, 72)
    assert np.array_equal(tensors.prediction[0, 0].numpy(), arrays.prediction[0, ..., 0])
    assert (picture.mode, picture.size) == ("I;16", (72, 48))
    assert np.array_equal(np.asarray(picture), np.round(arrays.prediction[0, ..., 0] * 65535).astype(np.uint16))
    assert arrays.uncertainty is arrays.normals is arrays.latent is None
    assert (arrays.prediction.min(), arrays.prediction.max()) == (0, 1)


def test_latents_out_are_the_prediction_undecoded(pipe, image):
    output = pipe(image, latents=noise(2), ensemble_size=2, output_type="latent")
    assert output.log_depth is None
    assert output.prediction.shape == (2, *LATENT)
    decoded = pipe(image, latents=noise(2), ensemble_size=2, output_latent=True)
    assert torch.equal(output.prediction, decoded.latent)


def test_the_tuple_has_the_fields_in_order(pipe, image):
    arguments = {"ensemble_size": 2, "output_uncertainty": True, "output_normals": True, "output_latent": True}
    output = pipe(image, latents=noise(2), **arguments)
    fields = (output.prediction, output.log_depth, output.uncertainty, output.normals, output.latent)
    for a, b in zip(fields, pipe(image, latents=noise(2), return_dict=False, **arguments), strict=True):
        assert np.array_equal(a, b)


def test_an_ensemble_is_the_mean_of_single_calls_in_log_depth(pipe, image):
    singles = [pipe(image, latents=one[None]).log_depth for one in noise(3)]
    for batch_size in (1, 2, 3):
        together = pipe(image, ensemble_size=3, latents=noise(3), batch_size=batch_size)
        assert largest_difference(together.log_depth, np.mean(singles, axis=0)) < 1e-5
        expected = depth_from_log_depth(torch.from_numpy(np.mean(singles, axis=0)[..., 0])).numpy()
        assert largest_difference(together.prediction[..., 0], expected) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_result_depends_on_its_own_image_and_noise_only(pipe, image, batch_size):
    """Three images of two sizes, two members each, by generators and by latents, against calls of their own."""
    images = [image, other_picture(40, 64), other_picture()]
    alone = [
        pipe(one, ensemble_size=2, generator=generators(2 * i, 2 * i + 1), output_latent=True, output_uncertainty=True)
        for i, one in enumerate(images)
    ]
    together = pipe(
        images,
        ensemble_size=2,
        generator=generators(*range(6)),
        batch_size=batch_size,
        output_uncertainty=True,
        output_latent=True,
    )
    for i, single in enumerate(alone):
        for field in ("prediction", "log_depth", "uncertainty"):
            assert largest_difference(together[field][i], single[field][0]) < 1e-5
        assert largest_difference(together.latent[i], single.latent) < 1e-5

    epsilons = [noise(2), noise(2, (4, 8, 5)), noise(2) + 1]
    by_latents = pipe(images, ensemble_size=2, latents=epsilons, batch_size=batch_size)
    for i, one in enumerate(images):
        assert largest_difference(by_latents.log_depth[i], pipe(one, 2, 2, latents=epsilons[i]).log_depth[0]) < 1e-5


def test_images_of_one_size_are_one_array_and_latents_one_tensor(pipe, image):
    images = [image, other_picture()]
    output = pipe(images, ensemble_size=2, latents=noise(4), output_latent=True, batch_size=3)
    assert output.prediction.shape == (2, 48, 72, 1)
    assert output.latent.shape == (4, *LATENT)
    second = pipe(images[1], ensemble_size=2, latents=noise(4)[2:])
    assert largest_difference(output.log_depth[1], second.log_depth[0]) < 1e-5


def test_images_of_several_sizes_are_lists_in_input_order(pipe, image):
    images = [other_picture(30, 90), image, other_picture(30, 90)]
    output = pipe(images, output_type="pt", output_normals=True)
    assert [tuple(one.shape) for one in output.prediction] == [(1, 90, 30), (1, 48, 72), (1, 90, 30)]
    assert [tuple(one.shape) for one in output.normals] == [(3, 90, 30), (3, 48, 72), (3, 90, 30)]


def test_one_generator_is_drawn_from_in_input_order(pipe, image):
    """Two images in a call take the same noise as one call after the other, and as one tensor of noise."""
    images = [image, other_picture()]
    together = pipe(images, ensemble_size=2, generator=generators(0)[0])
    generator = generators(0)[0]
    for i, one in enumerate(images):
        assert (
            largest_difference(pipe(one, ensemble_size=2, generator=generator).log_depth[0], together.log_depth[i])
            < 1e-5
        )
    drawn = torch.randn(4, *LATENT, generator=generators(0)[0])
    assert largest_difference(pipe(images, ensemble_size=2, latents=drawn).log_depth, together.log_depth) < 1e-5


def test_noise_matters_and_seeds_repeat(pipe, image):
    first, again, other = (pipe(image, generator=generators(seed)[0]).log_depth for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert largest_difference(first, other) > 1e-3


def test_without_noise_augmentation_noise_does_not_matter(pipe, image):
    pipe.scheduler = FlowMatchingImageToDepthScheduler(noise_augmentation_step=0)
    assert np.array_equal(pipe(image, latents=noise(1)).log_depth, pipe(image, latents=-noise(1)).log_depth)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_each_image_is_encoded_once_and_each_network_runs_in_batches(pipe, image, batch_size):
    counts = {"encoder": [], "decoder": [], "unet": [], "prompt_embedding": []}
    for name, module in (
        ("encoder", pipe.vae.encoder),
        ("decoder", pipe.vae.decoder),
        ("unet", pipe.unet),
        ("prompt_embedding", pipe.prompt_embedding),
    ):
        module.register_forward_hook(lambda _, inputs, output, name=name: counts[name].append(inputs))
    pipe([image] * 3, num_inference_steps=2, ensemble_size=4, batch_size=batch_size)
    assert sum(inputs[0].shape[0] for inputs in counts["encoder"]) == 3
    assert sum(inputs[0].shape[0] for inputs in counts["decoder"]) == 12
    assert sum(inputs[0].shape[0] for inputs in counts["unet"]) == 24
    assert max(inputs[0].shape[0] for name in ("encoder", "decoder", "unet") for inputs in counts[name]) <= batch_size
    assert len(counts["prompt_embedding"]) == 1


def test_the_network_sees_flow_times_in_0_1(pipe, image):
    times = []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: times.append(float(inputs[1])))
    pipe(image, num_inference_steps=4)
    assert times == [0.0, 0.25, 0.5, 0.75]
    pipe.scheduler = FlowMatchingImageToDepthScheduler(timestep_scale=1000.0)
    pipe(image, num_inference_steps=2)
    assert times[4:] == [0.0, 500.0]


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_two_stage_solvers_run_and_agree_with_many_euler_steps(pipe, image, solver):
    exact = pipe(image, num_inference_steps=60, latents=noise(1)).log_depth
    pipe.scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    output = pipe([image] * 2, num_inference_steps=8, latents=noise(1).repeat(2, 1, 1, 1), batch_size=1)
    assert pipe.num_timesteps == 16
    assert largest_difference(output.log_depth, exact) < 0.02 * np.ptp(exact)


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (400, 17), (17, 400), (63, 65)])
@pytest.mark.parametrize("resolution", [None, 0])
def test_any_aspect_ratio(pipe, size, resolution):
    output = pipe(other_picture(*size), processing_resolution=resolution)
    assert output.prediction.shape == (1, size[1], size[0], 1)
    assert np.isfinite(output.log_depth).all()


def test_a_single_pixel_is_processed_at_the_processing_resolution(pipe):
    assert pipe(other_picture(1, 1)).prediction.shape == (1, 1, 1, 1)


def test_the_padding_is_cropped_off_not_resized_away(pipe):
    """Where nothing is resized, the map is the top left of that of the image padded by its border."""
    image = torch.rand(1, 3, 43, 64, generator=generators(0)[0])
    padded = torch.nn.functional.pad(image, (0, 0, 0, 5), mode="replicate")
    whole = pipe(padded, latents=noise(1), processing_resolution=0).log_depth
    cropped = pipe(image, latents=noise(1), processing_resolution=0).log_depth
    assert cropped.shape == (1, 43, 64, 1)
    assert largest_difference(cropped, whole[:, :43]) < 1e-5


@pytest.fixture(params=[2, 4])
def odd_pipe(request):
    """A pipeline whose UNet has as many levels, so that few latents can be halved evenly."""
    levels = request.param
    unet = build_unet(
        block_out_channels=(32, *[64] * (levels - 1)),
        norm_num_groups=8,  # normalising the two values of a 1×1 map in 32 groups would magnify rounding
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )
    pipe = DepthFMPipeline(**{**build_components(), "unet": unet}, default_processing_resolution=0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", [(72, 48), (56, 40), (57, 39), (200, 1), (1, 333)])
def test_latents_of_odd_sizes(odd_pipe, size):
    """Images are padded to a multiple of the autoencoder's factor only, whatever the UNet's depth."""
    latent = (4, -(-size[1] // 8), -(-size[0] // 8))
    seen = []
    odd_pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    picture = other_picture(*size)
    output = odd_pipe(picture, ensemble_size=2, latents=noise(2, latent), batch_size=2, output_latent=True)
    assert set(seen) == {(8, *latent[1:])}
    assert output.latent.shape == (2, *latent)
    assert output.prediction.shape == (1, size[1], size[0], 1)
    singles = [odd_pipe(picture, latents=one[None]).log_depth for one in noise(2, latent)]
    assert largest_difference(output.log_depth, np.mean(singles, axis=0)) < 1e-5


def test_tiles_of_odd_latents(odd_pipe):
    odd_pipe.vae.enable_tiling()
    output = odd_pipe(other_picture(104, 88), ensemble_size=2, generator=generators(0)[0])
    assert output.prediction.shape == (1, 88, 104, 1)
    assert np.isfinite(output.log_depth).all()


def test_processing_resolution_and_output_size(pipe, image):
    small = pipe(image, processing_resolution=32, match_input_resolution=False, output_normals=True)
    assert small.prediction.shape == (1, 21, 32, 1)
    assert small.normals.shape == (1, 21, 32, 3)
    assert pipe(image, match_input_resolution=False).prediction.shape == (1, 43, 64, 1)
    assert pipe(image, processing_resolution=100, match_input_resolution=False).prediction.shape == (1, 67, 100, 1)
    assert pipe(image, processing_resolution=32).prediction.shape == (1, 48, 72, 1)


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
def test_resampling_methods(pipe, image, method):
    native = pipe(image, match_input_resolution=False, latents=noise(1), resample_method_input=method).log_depth
    output = pipe(image, latents=noise(1), resample_method_input=method, resample_method_output=method).log_depth
    assert largest_difference(output.mean(), native.mean()) < 0.1 * np.ptp(native)


def test_uncertainty_is_that_of_the_aligned_members(pipe, image):
    members = [
        torch.from_numpy(pipe(image, latents=one[None], match_input_resolution=False).log_depth[0, ..., 0])
        for one in noise(4)
    ]
    output = pipe(image, ensemble_size=4, latents=noise(4), match_input_resolution=False, output_uncertainty=True)
    assert largest_difference(output.uncertainty[0, ..., 0], ensemble_uncertainty(torch.stack(members)).numpy()) < 1e-5
    resized = pipe(image, ensemble_size=4, latents=noise(4), output_uncertainty=True, output_type="pt")
    assert resized.uncertainty.shape == (1, 1, 48, 72)


def test_uncertainty_is_not_negative_where_bicubic_resizing_undershoots(pipe):
    """Two members that agree but for a few places: the interpolated spread swings below 0 beside them."""
    picture = other_picture(16, 16)
    arguments = {"ensemble_size": 2, "latents": noise(2, (4, 4, 4)), "output_uncertainty": True}
    native = pipe(picture, processing_resolution=32, match_input_resolution=False, **arguments).uncertainty
    picture = picture.resize((256, 256))
    output = pipe(picture, processing_resolution=32, resample_method_output="bicubic", **arguments).uncertainty
    unclamped = resize(torch.from_numpy(native).permute(0, 3, 1, 2), (256, 256), "bicubic")
    assert unclamped.min() < 0, "else this test shows nothing"
    assert output.min() == 0


def test_normals_are_those_of_the_log_depth(pipe, image):
    output = pipe(image, latents=noise(1), output_type="pt", output_normals=True, fov_x_deg=70.0)
    expected = depth_to_normals(output.log_depth.exp(), intrinsics_from_fov(70.0, 48, 72))
    torch.testing.assert_close(output.normals, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.normals.norm(dim=1), torch.ones(1, 48, 72))


def test_a_constant_map_gives_zero(pipe, image):
    for parameter in pipe.vae.decoder.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    output = pipe(image)
    assert np.array_equal(output.prediction, np.zeros((1, 48, 72, 1)))


def test_the_decoder_is_not_clamped(pipe, image):
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 100
    assert pipe(image).log_depth.min() > 50


def test_autoencoder_tiny(image):
    torch.manual_seed(0)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    pipe = DepthFMPipeline(**{**build_components(), "vae": vae}, default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    pixels = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(pipe.encode_image(pixels * 2 - 1), vae.encode(pixels * 2 - 1).latents)
    output = pipe([image, image], ensemble_size=2, generator=generators(0, 1, 0, 1), batch_size=2)
    assert largest_difference(output.log_depth[0], output.log_depth[1]) < 1e-5


def test_slicing_changes_nothing_and_tiling_runs(pipe):
    images = [other_picture(96, 80)] * 2
    arguments = {"latents": noise(2, (4, 10, 12)), "processing_resolution": 0, "batch_size": 2}
    whole = pipe(images, **arguments).log_depth
    pipe.vae.enable_slicing()
    assert largest_difference(pipe(images, **arguments).log_depth, whole) < 1e-5
    pipe.vae.enable_tiling()
    tiles = []
    pipe.vae.decoder.register_forward_hook(lambda _, inputs, output: tiles.append(inputs[0].shape))
    tiled = pipe(images, **arguments).log_depth
    assert len(tiles) > 4
    assert tiled.shape == whole.shape
    assert np.isfinite(tiled).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_maps_stay_float32(pipe, image, dtype):
    """Within 5 % of the map's range; state, noise and maps are float32 whatever the networks' dtype."""
    full = pipe(image, generator=generators(0)[0]).log_depth
    half = pipe.to(dtype)(image, generator=generators(0)[0], output_latent=True)
    assert half.log_depth.dtype == np.float32
    assert half.latent.dtype == torch.float32
    assert largest_difference(half.log_depth, full) < 0.05 * np.ptp(full)


def test_a_float32_autoencoder_beside_a_half_precision_unet(pipe, image):
    pipe.to(torch.float16)
    pipe.vae.to(torch.float32)
    assert np.isfinite(pipe(image).log_depth).all()


@pytest.mark.parametrize("where", ["encoder", "decoder", "unet"])
def test_non_finite_results_are_an_error_with_advice(pipe, image, where):
    """float16 overflows at 65504; the message names the component and the dtype."""
    layer = pipe.unet.conv_out if where == "unet" else getattr(pipe.vae, where).conv_out
    with torch.no_grad():
        layer.weight *= 1e6
    assert np.isfinite(pipe(image, num_inference_steps=1).log_depth).all(), "float32 has room for it"
    pipe.to(torch.float16)
    component = "unet" if where == "unet" else "vae"
    with pytest.raises(RuntimeError, match=rf"`{component}` runs in torch.float16.*bfloat16.*vae.to\(torch.float32\)"):
        pipe(image, num_inference_steps=1)


def test_damaged_weights_are_not_blamed_on_float16(pipe, image):
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"`unet` runs in torch.float32.*weights may be damaged"):
        pipe(image)


@pytest.mark.parametrize("shift", [None, 0.0, 0.7])
def test_the_autoencoders_shift_is_applied(pipe, shift):
    """(z - shift)·scale on the way in and z/scale + shift on the way out, as diffusers' newer pipelines."""
    pixels, latents = torch.rand(1, 3, 48, 64) * 2 - 1, noise(1)
    with torch.no_grad():
        mode, scale = pipe.vae.encode(pixels).latent_dist.mode(), pipe.vae.config.scaling_factor
        encoded, decoded = pipe.encode_image(pixels), pipe.decode_depth(latents)
        expected = pipe.vae.decode(latents / scale + (shift or 0.0)).sample.mean(dim=1, keepdim=True)
        pipe.vae.register_to_config(shift_factor=shift)
        assert torch.equal(pipe.encode_image(pixels), (mode - (shift or 0.0)) * scale)
        assert torch.equal(pipe.decode_depth(latents), expected)
    if not shift:
        assert torch.equal(pipe.encode_image(pixels), encoded)
        assert torch.equal(pipe.decode_depth(latents), decoded)
