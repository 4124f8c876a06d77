"""What belongs to one call: its steps and its interruption, whatever other calls the pipeline is in."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from helpers.host_reads import HostReads

from depthfm_diffusers import FlowMatchingImageToDepthScheduler


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def interrupt(pipeline, i, t, tensors):
    pipeline._interrupt = True
    return tensors


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_threads_get_what_calls_one_after_the_other_get(pipe, image, solver):
    """Four threads with other numbers of steps each, all inside the loop at once, to the bit."""
    pipe.scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    steps = [1, 2, 3, 5]
    all_inside = Barrier(len(steps), timeout=20)

    def predict(index, together):
        evaluations = []

        def callback(pipeline, i, t, tensors):
            if together and i == 0:
                all_inside.wait()
            evaluations.append((i, float(t), pipeline.num_timesteps))
            return tensors

        log_depth = pipe(
            image, num_inference_steps=steps[index], generator=seeded(index), callback_on_step_end=callback
        ).log_depth
        return log_depth, evaluations, pipe.num_timesteps

    with ThreadPoolExecutor(1) as pool:
        expected = list(pool.map(lambda index: predict(index, together=False), range(4)))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda index: predict(index, together=True), range(4)))
    for (log_depth, evaluations, _), (expected_log_depth, expected_evaluations, number) in zip(
        got, expected, strict=True
    ):
        assert np.array_equal(log_depth, expected_log_depth)
        assert evaluations == expected_evaluations
        assert {seen for _, _, seen in evaluations} == {number}


def test_a_callback_interrupts_its_own_call(pipe, image):
    both_inside = Barrier(2, timeout=20)

    def predict(stop):
        seen = []

        def callback(pipeline, i, t, tensors):
            seen.append(i)
            if i == 0:
                both_inside.wait()
                if stop:
                    pipeline._interrupt = True
                both_inside.wait()
            return tensors

        pipe(image, num_inference_steps=3, callback_on_step_end=callback)
        return seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(predict, [True, False])) == [[0], [0, 1, 2]]


def test_another_thread_may_interrupt_all_calls(pipe, image):
    """As a user interface does, whose button is in a thread that makes no call."""
    inside, stopped, seen = Event(), Event(), []

    def callback(pipeline, i, t, tensors):
        seen.append(i)
        inside.set()
        assert stopped.wait(20)
        return tensors

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(pipe, image, num_inference_steps=3, callback_on_step_end=callback)
        assert inside.wait(20)
        pipe._interrupt = True
        stopped.set()
        call.result(20)
    assert seen == [0]
    assert pipe.interrupt, "as in diffusers, until the next call"


def test_a_callback_may_call_its_own_pipeline(pipe, image):
    expected = pipe(image, num_inference_steps=3, generator=seeded(0)).log_depth
    inner = []

    def callback(pipeline, i, t, tensors):
        inner.append(pipeline(image, num_inference_steps=1, generator=seeded(i)).log_depth)
        assert pipeline.num_timesteps == 3
        return tensors

    output = pipe(image, num_inference_steps=3, generator=seeded(0), callback_on_step_end=callback)
    assert np.array_equal(output.log_depth, expected)
    assert np.array_equal(inner[2], pipe(image, num_inference_steps=1, generator=seeded(2)).log_depth)


def test_the_scheduler_is_left_as_it_was(pipe, image):
    pipe.scheduler.set_timesteps(7)
    pipe(image, num_inference_steps=2)
    assert len(pipe.scheduler.timesteps) == 7
    assert pipe.scheduler.step_index is None


def test_a_pipeline_can_be_copied(pipe, image):
    expected = pipe(image, generator=seeded(0)).log_depth
    assert np.array_equal(copy.deepcopy(pipe)(image, generator=seeded(0)).log_depth, expected)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "latent"])
def test_images_whose_flow_never_began_are_not_returned_as_depth(pipe, image, output_type):
    """Two sizes are two groups: an interruption in the first leaves the second out."""
    tall = image.resize((48, 72))
    arguments = {"num_inference_steps": 3, "ensemble_size": 2, "batch_size": 1, "output_type": output_type}
    encoded = []
    pipe.vae.encoder.register_forward_hook(lambda _, inputs, output: encoded.append(inputs[0].shape))
    output = pipe([image, tall, image], **arguments, callback_on_step_end=interrupt, output_latent=True)
    assert [one is None for one in output.prediction] == [False, True, False]
    assert [one is None for one in output.latent] == [False, True, False]
    if output_type != "latent":
        assert [one is None for one in output.log_depth] == [False, True, False]
    assert len(encoded) == 2, "what is left out is not encoded"


def test_maps_of_an_interrupted_call_stay_in_place(pipe, image):
    arguments = {"ensemble_size": 2, "output_uncertainty": True, "output_normals": True}
    output = pipe([image, image.resize((48, 72))], **arguments, callback_on_step_end=interrupt)
    for maps in (output.prediction, output.log_depth, output.uncertainty, output.normals):
        assert maps[0] is not None
        assert maps[1] is None


def test_a_call_that_is_interrupted_before_its_first_evaluation_returns_nothing(pipe, image):
    def stop(module, inputs):
        pipe._interrupt = True

    pipe.vae.encoder.register_forward_pre_hook(stop)
    output = pipe(image, output_latent=True)
    assert list(output.values()) == []
    assert pipe(image, return_dict=False) == (None,) * 5
    several = pipe([image, image.resize((48, 72))])
    assert several.prediction is None


def test_the_loop_does_not_wait_for_the_device(pipe, image):
    """Nothing is read back between the first evaluation and the last."""
    image_latents, noise = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 6, 8)
    for solver in ("euler", "midpoint", "heun"):
        pipe.scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
        with torch.no_grad(), HostReads() as host:
            pipe.denoise(image_latents, noise, pipe.prompt_embedding(1), 3, 2, lambda: None)
        assert host.reads == []
