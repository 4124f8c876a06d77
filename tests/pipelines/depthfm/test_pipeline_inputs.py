"""Wrong arguments are named, with what was got, before any network runs; the right ones of every kind are accepted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from helpers.components import build_components, build_unet, build_vae
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, PromptEmbedding
from depthfm_diffusers.models.attention_processor import set_self_attention_rescaling


@pytest.fixture
def idle_pipe(pipe):
    """A pipeline none of whose networks may run."""

    def refuse(*_):
        raise AssertionError("a network ran")

    for module in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder, pipe.prompt_embedding):
        module.register_forward_pre_hook(refuse)
    return pipe


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be at least 1, got 0"),
        ({"num_inference_steps": np.int64(0)}, ValueError, "`num_inference_steps` must be at least 1, got 0"),
        ({"num_inference_steps": np.float32(2)}, TypeError, "`num_inference_steps` must be an integer, got"),
        ({"num_inference_steps": True}, TypeError, "`num_inference_steps` must be an integer, got True"),
        ({"num_inference_steps": 2.0}, TypeError, "`num_inference_steps` must be an integer, got 2.0"),
        ({"ensemble_size": 0}, ValueError, "`ensemble_size` must be at least 1, got 0"),
        ({"ensemble_size": True}, TypeError, "`ensemble_size` must be an integer"),
        ({"ensemble_size": "3"}, TypeError, "`ensemble_size` must be an integer, got '3'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": None}, TypeError, "`batch_size` must be an integer, got None"),
        ({"processing_resolution": -1}, ValueError, "`processing_resolution` must be at least 0, got -1"),
        ({"resample_method_input": "lanczos"}, ValueError, "`resample_method_input` must be one of .* got 'lanczos'"),
        ({"resample_method_output": 3}, ValueError, "`resample_method_output` must be one of .* got 3"),
        ({"resample_method_output": ["area"]}, ValueError, "`resample_method_output` must be one of"),
        ({"output_type": "pandas"}, ValueError, "`output_type` must be .* got 'pandas'"),
        ({"output_uncertainty": True}, ValueError, "`output_uncertainty=True` needs `ensemble_size` .* got 1"),
        (
            {"output_uncertainty": True, "ensemble_size": 2, "output_type": "latent"},
            ValueError,
            "`output_uncertainty` and `output_normals` need decoded maps",
        ),
        ({"output_normals": True, "fov_x_deg": 180.0}, ValueError, r"`fov_x_deg` must be in \(0, 180\).* got 180"),
        ({"latents": torch.zeros(2, 4, 6, 8)}, ValueError, r"`latents` must have shape \(1, 4, 6, 8\).* got \(2, 4"),
        ({"latents": torch.zeros(1, 4, 8, 6)}, ValueError, r"`latents` must have shape \(1, 4, 6, 8\)"),
        (
            {"latents": torch.zeros(1, 4, 6, 10), "processing_resolution": 0},
            ValueError,
            r"shape \(1, 4, 6, 9\) .* processed image, each divided by 8 and rounded up\), got \(1, 4, 6, 10\)",
        ),
        ({"latents": torch.zeros(1, 4, 6, 8), "ensemble_size": 2}, ValueError, r"\(2, 4, 6, 8\)"),
        ({"latents": [torch.zeros(1, 4, 6, 8)] * 2}, ValueError, "`latents` must be a list of tensors of shapes"),
        ({"latents": np.zeros((1, 4, 6, 8))}, TypeError, "`latents` must be a tensor, or a list .* got ndarray"),
        ({"latents": torch.full((1, 4, 6, 8), torch.nan)}, ValueError, "`latents` hold NaN"),
        ({"generator": [generator()] * 2}, ValueError, r"`generator` .* 1 × 1 = 1; got 2"),
        ({"generator": [generator()], "ensemble_size": 3}, ValueError, r"1 × 3 = 3; got 1"),
        ({"generator": []}, ValueError, r"1 × 1 = 1; got 0"),
        ({"generator": 42}, TypeError, "`generator` must be a torch.Generator or a list of them, got int"),
        ({"generator": [None]}, TypeError, "`generator` .* got NoneType"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, r"must be among \['latents'.*\['noise'\]"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, TypeError, "must be a list of names .* got 'latents'"),
        ({"callback_on_step_end_tensor_inputs": 1}, TypeError, "`callback_on_step_end_tensor_inputs` must be a list"),
        ({"image": []}, ValueError, "`image` is empty"),
        ({"image": "photo.jpg"}, TypeError, "`image` must be .* got str"),
        ({"image": torch.full((3, 8, 8), torch.nan)}, ValueError, "`image` holds NaN"),
        ({"image": [Image.new("L", (8, 8)), np.full((8, 8), 7.0)]}, ValueError, r"`image\[1\]` must have values in"),
        ({"image": Image.new("L", (9, 1)), "output_normals": True}, ValueError, "`output_normals=True` needs maps of"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named_before_anything_runs(idle_pipe, image, arguments, error, match):
    with pytest.raises(error, match=match):
        idle_pipe(**{"image": image, **arguments})


def test_latents_of_several_sizes_must_be_a_list(idle_pipe, image):
    with pytest.raises(TypeError, match="`latents` must be a tensor, or a list"):
        idle_pipe([image, image.resize((48, 72))], latents=torch.zeros(2, 4, 6, 8))


def test_kinds_of_images_give_the_same_result(pipe, image):
    array = np.asarray(image)
    expected = pipe(image, generator=generator()).prediction
    for same in (array, array / 255, array[None], torch.from_numpy(array.copy()).permute(2, 0, 1), [image]):
        np.testing.assert_allclose(pipe(same, generator=generator()).prediction, expected, atol=1e-5)


def test_output_is_upright(pipe, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    image.getexif()[0x0112] = 6
    assert pipe(image).prediction.shape == (1, 72, 48, 1)


def test_defaults_are_the_models(pipe, image):
    times = []
    pipe.unet.register_forward_hook(lambda *_: times.append(1))
    pipe.default_num_inference_steps = 3
    pipe.default_processing_resolution = 32
    assert pipe(image, match_input_resolution=False).prediction.shape == (1, 21, 32, 1)
    assert len(times) == pipe.num_timesteps == 3
    assert pipe.config.default_num_inference_steps == 3, "saved with the pipeline"


def test_components_that_do_not_fit_are_refused(idle_pipe, image):
    """When the pipeline is made, and when they are exchanged later."""
    narrow = build_unet()
    narrow.register_to_config(in_channels=4)
    for name, component, match in (
        ("unet", narrow, r"`unet` must take 8 channels .* takes 4"),
        (
            "prompt_embedding",
            PromptEmbedding(num_tokens=4, dim=24),
            "`prompt_embedding` must have .* 16, but it has 24",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            DepthFMPipeline(**{**build_components(), name: component})
        original = getattr(idle_pipe, name)
        setattr(idle_pipe, name, component)
        with pytest.raises(ValueError, match=match):
            idle_pipe(image)
        setattr(idle_pipe, name, original)


def test_widths_of_cross_attention_may_be_given_per_level():
    components = build_components()
    components["unet"] = build_unet(cross_attention_dim=(16, 16))
    assert DepthFMPipeline(**components).unet.config.cross_attention_dim == (16, 16)


def test_a_scheduler_of_another_kind_is_refused(idle_pipe, image):
    idle_pipe.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"`scheduler` must be a FlowMatching.* but it is a EulerDiscreteScheduler"):
        idle_pipe(image)


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler", "prompt_embedding"])
def test_a_missing_component_is_named(image, name):
    pipe = DepthFMPipeline(**{**build_components(), name: None})
    with pytest.raises(ValueError, match=f"no {name}: set `pipe.{name}`"):
        pipe(image)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"default_num_inference_steps": 0}, ValueError, "`default_num_inference_steps` must be at least 1, got 0"),
        ({"default_processing_resolution": -8}, ValueError, "`default_processing_resolution` must be at least 0"),
        ({"default_num_inference_steps": "2"}, TypeError, "`default_num_inference_steps` must be an integer, got '2'"),
    ],
)
def test_wrong_defaults_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        DepthFMPipeline(**build_components(), **arguments)


def test_integers_of_numpy_are_integers(pipe, image):
    names = ("num_inference_steps", "ensemble_size", "batch_size", "processing_resolution")
    values = (2, 2, 2, 32)
    expected = pipe(image, generator=generator(), **dict(zip(names, values, strict=True))).log_depth
    numpy_values = (np.int64(2), np.uint8(2), np.int32(2), np.int16(32))
    output = pipe(image, generator=generator(), **dict(zip(names, numpy_values, strict=True))).log_depth
    assert np.array_equal(output, expected)


def test_latents_win_over_a_generator(pipe, image):
    """As in diffusers: the generator is not drawn from."""
    latents, source = torch.randn(1, 4, 6, 8, generator=generator()), generator()
    state = source.get_state()
    both = pipe(image, latents=latents, generator=source).log_depth
    assert np.array_equal(both, pipe(image, latents=latents).log_depth)
    assert torch.equal(source.get_state(), state)


def test_images_too_small_for_group_normalisation_are_named(idle_pipe, image):
    """The UNet's second level would get a 1×1 map of 32 channels in 32 groups."""
    with pytest.raises(ValueError, match=r"An image of 16×9 pixels .* `unet`.* larger `processing_resolution`"):
        idle_pipe([image, image.resize((9, 16))], processing_resolution=0)


def test_images_too_small_for_the_autoencoder_are_named():
    components = build_components()
    components["unet"] = build_unet(norm_num_groups=8)
    pipe = DepthFMPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    tiny = Image.new("RGB", (8, 8))
    assert pipe(tiny, processing_resolution=0).prediction.shape == (1, 8, 8, 1), "two or more channels per group"
    pipe.vae = build_vae(norm_num_groups=16, block_out_channels=(16,) * 4)
    with pytest.raises(ValueError, match=r"An image of 8×8 pixels .* `vae`"):
        pipe(tiny, processing_resolution=0)
    assert pipe(tiny, processing_resolution=9).prediction.shape == (1, 8, 8, 1)


def test_lost_attention_processors_are_an_error_not_another_model(image):
    pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64, rescale_self_attention=True)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(image, generator=generator()).prediction
    pipe.unet = build_unet()
    with pytest.raises(ValueError, match="`rescale_self_attention=True`, but"):
        pipe(image)
    set_self_attention_rescaling(pipe.unet, True)
    assert np.array_equal(pipe(image, generator=generator()).prediction, expected)


def test_rescaling_changes_the_result_and_can_be_switched_off(image):
    components = build_components()
    results = []
    for rescale in (False, True, False):
        pipe = DepthFMPipeline(**components, default_processing_resolution=64, rescale_self_attention=rescale)
        pipe.set_progress_bar_config(disable=True)
        results.append(pipe(image, generator=generator()).log_depth)
    assert abs(results[0] - results[1]).max() > 1e-4
    assert np.array_equal(results[0], results[2])


def test_a_callback_sees_each_step_once_whatever_the_batch_size(pipe, image):
    seen = []

    def callback(pipeline, i, t, tensors):
        assert pipeline is pipe
        seen.append((i, float(t), {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
        return tensors

    names = ["latents", "image_latents"]
    arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    pipe([image, image], num_inference_steps=2, ensemble_size=3, batch_size=4, **arguments)
    shapes = dict.fromkeys(names, (6, 4, 6, 8))
    assert seen == [(0, 0.0, shapes), (1, 0.5, shapes)]
    seen.clear()
    pipe([image, image.resize((48, 72)), image], num_inference_steps=1, **arguments)
    assert [shapes["latents"] for _, _, shapes in seen] == [(2, 4, 6, 8), (1, 4, 8, 6)]


def test_what_a_callback_returns_is_used(pipe, image):
    def zero_the_last(pipeline, i, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if i == pipeline.num_timesteps - 1 else {}

    output = pipe(image, ensemble_size=2, callback_on_step_end=zero_the_last, output_type="latent").prediction
    assert not output.any()
    with pytest.raises(TypeError, match=r"`callback_on_step_end` must return the dict .* NoneType"):
        pipe(image, callback_on_step_end=lambda *_: None)


def test_a_callback_may_interrupt_and_the_next_call_is_whole(pipe, image):
    calls = []

    def interrupt(pipeline, i, t, tensors):
        calls.append(i)
        pipeline._interrupt = True
        return tensors

    pipe(image, num_inference_steps=5, callback_on_step_end=interrupt)
    assert calls == [0]
    pipe(image, num_inference_steps=5, callback_on_step_end=lambda p, i, t, tensors: calls.append(i) or tensors)
    assert calls == [0, 0, 1, 2, 3, 4]


def test_callback_objects_name_their_own_tensors(pipe, image):
    class Recorder(PipelineCallback):
        tensor_inputs = ("image_latents",)

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            assert set(callback_kwargs) == {"image_latents"}
            seen.append(step_index)
            return callback_kwargs

    seen = []
    pipe(image, num_inference_steps=2, callback_on_step_end=Recorder())
    pipe(image, num_inference_steps=1, callback_on_step_end=MultiPipelineCallbacks([Recorder()]))
    assert seen == [0, 1, 0]


def test_without_names_a_callback_gets_the_latents(pipe, image):
    given = []
    pipe(
        image,
        num_inference_steps=1,
        callback_on_step_end=lambda _, i, t, tensors: given.append(list(tensors)) or tensors,
        callback_on_step_end_tensor_inputs=None,
    )
    assert given == [["latents"]]


def test_the_progress_bar_counts_network_evaluations(pipe, image, capsys):
    totals = []
    original = pipe.progress_bar

    def recorded(iterable=None, total=None):
        bar = original(iterable, total)
        totals.append((total, bar))
        return bar

    pipe.progress_bar = recorded
    pipe.set_progress_bar_config(disable=False)
    pipe([image, image, image.resize((48, 72))], num_inference_steps=3, ensemble_size=2, batch_size=3)
    ((total, bar),) = totals
    assert total == bar.n == 3 * (2 + 1)
    assert "9/9" in capsys.readouterr().err


def test_components_are_left_as_they_were(pipe, image):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    config = dict(pipe.config)
    pipe(image)
    assert dict(pipe.config) == config
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())
