"""Noise, schedule, predictor and solver against figures and forms written independently."""

import hashlib
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from cosmos_fast.errors import Cancelled, InputError
from cosmos_fast.sampling import (
    adams_bashforth,
    denoiser,
    flow_time,
    guided,
    noise_ahead,
    reference_noise,
    sigmas,
)
from cosmos_fast.types import Conditioning, LatentFrames

REFERENCE_T_BF16 = [
    0.98828125, 0.984375, 0.984375, 0.98046875, 0.9765625, 0.97265625, 0.96875, 0.9609375,
    0.953125, 0.9453125, 0.93359375, 0.91796875, 0.90234375, 0.87890625, 0.85546875, 0.82421875,
    0.78515625, 0.7421875, 0.6875, 0.62890625, 0.5625, 0.490234375, 0.41796875, 0.34375, 0.2734375,
    0.2109375, 0.1572265625, 0.11279296875, 0.07861328125, 0.052490234375, 0.033935546875,
    0.0211181640625, 0.01263427734375, 0.007232666015625, 0.00390625, 0.0019989013671875,
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "seed", "last", "digest"),
    [
        ((1, 16, 24, 54, 96), 0, (0.44684687, -0.8686176), "ee2032bd921e599d"),
        ((1, 16, 21, 54, 96), 0, (-0.45763835, 0.49440566), "17ec57cae387818a"),
        ((1, 16, 21, 54, 96), 1, (-1.0770857, 1.2647018), "c0ed355593d62cb0"),
        ((1, 16, 24, 88, 160), 0, (-0.17332473, 0.61868244), "ddc41a38744e4fbe"),
        ((1, 16, 16, 88, 160), 0, (-0.06860539, -1.1204941), "a513dbdc2a5fc68a"),
    ],
)
def test_noise_equals_the_reference(shape, seed, last, digest, parity):
    before = np.random.get_state()[1].copy()
    noise = reference_noise(shape, seed)
    assert noise.dtype == torch.float32
    found = hashlib.sha256(noise.numpy().tobytes()).hexdigest()[:16]
    parity(f"noise {shape}, seed {seed}", "hash of the reference's", float(found != digest), 0)
    assert noise.flatten()[-2:].tolist() == pytest.approx(last, rel=2e-7)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", True, None])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        reference_noise((1, 2), seed)


def test_noise_ahead_is_the_same_and_leaves_the_body_alone():
    """The body begins while 16 million numbers are being drawn: NumPy holds no lock on it."""
    shape = (1, 16, 10, 320, 320)
    with noise_ahead(shape, 3) as drawn:
        assert not drawn.done()
        noise = drawn.result()
    assert torch.equal(noise, reference_noise(shape, 3))


def test_noise_ahead_leaves_no_thread_behind():
    def fail():
        with noise_ahead((16, 100_000), 0):
            assert drawing()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not drawing()
    with noise_ahead((1, 2), -1) as drawn, pytest.raises(InputError, match="seed"):
        drawn.result()
    assert not drawing()


def test_noise_is_drawn_where_no_thread_can_be_had():
    """A thread of the host may go on after its main one has ended; pools refuse work from then."""
    script = """
import contextlib, threading, time
from concurrent.futures import ThreadPoolExecutor
from cosmos_fast.sampling import noise_ahead, reference_noise

def late():
    with contextlib.suppress(RuntimeError), ThreadPoolExecutor(1) as pool:
        while True:
            pool.submit(int)
            time.sleep(0.01)
    with noise_ahead((1, 2), 3) as drawn, noise_ahead((1, 2), -1) as refused:
        print(bool((drawn.result() == reference_noise((1, 2), 3)).all()))
        print(type(refused.exception()).__name__)

threading.Thread(target=late).start()
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["True", "InputError"], ran.stderr


def drawing():
    return [one for one in threading.enumerate() if one.name.startswith("cosmos-fast noise")]


def test_schedule_has_the_reference_values():
    levels = sigmas(35)
    assert len(levels) == 36
    expected = [80, 68.3251, 58.1421, 49.2886, 41.6168, 34.9922]
    assert levels[:6] == pytest.approx(expected, abs=5e-5)
    assert levels[7] == pytest.approx(24.4083, abs=5e-5)
    assert levels[-4:] == pytest.approx([0.0128067, 0.0072721, 0.00392871, 0.002], rel=1e-5)


def test_the_network_sees_the_reference_times(parity):
    seen = [float(torch.tensor(flow_time(s), dtype=torch.bfloat16)) for s in sigmas(35)]
    wrong = sum(ours != theirs for ours, theirs in zip(seen, REFERENCE_T_BF16, strict=True))
    parity("bf16 times of all 36 evaluations", "the reference's table", wrong, 0)


@pytest.mark.parametrize("steps", [0, -3, 1001, True])
def test_a_bad_step_count_is_refused(steps):
    with pytest.raises(InputError, match="num_steps"):
        sigmas(steps)


def phi_form(predict, x, levels):
    """The reference's own formulation, through phi functions in log sigma, in float64."""
    previous = None
    for i in range(len(levels) - 1):
        x0 = predict(x.float(), levels[i], i).double()
        lam, lam_next = -math.log(levels[i]), -math.log(levels[i + 1])
        h = lam_next - lam
        phi1 = math.expm1(-h) / -h
        if previous is None:
            x = math.exp(-h) * x + h * phi1 * x0
        else:
            x0_old, lam_old = previous
            c2 = (lam_old - lam) / h
            phi2 = (phi1 - 1) / -h
            b2 = phi2 / c2
            x = math.exp(-h) * x + h * ((phi1 - b2) * x0 + b2 * x0_old)
        x = x.float().double()
        previous = (x0, lam)
    return predict(x.float(), levels[-1], len(levels) - 1)


def test_solver_equals_the_phi_form(parity):
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) * 0.2

    def predict(x, sigma, step):
        return torch.tanh(torch.einsum("oc,bcthw->bothw", weight, x / (1 + sigma))) + 0.01 * step

    start = 80 * reference_noise((1, 16, 3, 4, 5), 1)
    ours = adams_bashforth(predict, start, sigmas(35))
    theirs = phi_form(predict, start.double(), sigmas(35))
    error = ((ours - theirs).norm() / theirs.norm()).item()
    parity("solver, 35 steps", "phi-function form in float64", error, 1e-6)


def test_solver_is_exact_where_x0_is_linear_in_log_sigma():
    """Second order: after the Euler start the error falls four times when the steps double."""

    def predict(x, sigma, step):
        return torch.sin(torch.tensor(math.log(sigma), dtype=torch.float64)).expand_as(x)

    def end_state(steps):
        captured = {}

        def watch(x, sigma, step):
            captured["x"] = x
            return predict(x, sigma, step)

        adams_bashforth(watch, torch.zeros(1), sigmas(steps, sigma_max=5.0, sigma_min=0.1))
        return captured["x"].item()

    exact = end_state(1000)
    errors = [abs(end_state(steps) - exact) for steps in (25, 50, 100)]
    assert 3.3 < errors[0] / errors[1] < 5
    assert 3.0 < errors[1] / errors[2] < 5


def test_denoiser_follows_the_formulas():
    generator = torch.Generator().manual_seed(0)
    given = Conditioning.from_first_frames(
        torch.randn(1, 16, 1, 4, 6, generator=generator), LatentFrames(3)
    )
    x = torch.randn(1, 16, 3, 4, 6, generator=generator) * 7
    flow = torch.randn(1, 16, 3, 4, 6, generator=generator)
    seen = {}

    def velocity(network_x, times, mask, step):
        seen.update(x=network_x, times=times, mask=mask, step=step)
        return flow

    sigma = 7.0
    x0 = denoiser(velocity, given)(x, sigma, 5)
    t = sigma / (1 + sigma)
    torch.testing.assert_close(seen["x"][:, :, 0], given.latents[:, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(seen["x"][:, :, 1:], (1 - t) * x[:, :, 1:])
    torch.testing.assert_close(seen["times"], torch.tensor([[1e-4 / (1 + 1e-4), t, t]]))
    assert seen["mask"].shape == (1, 1, 3, 4, 6)
    assert seen["mask"][0, 0, :, 0, 0].tolist() == [1, 0, 0]
    assert seen["step"] == 5
    torch.testing.assert_close(x0[:, :, 0], given.latents[:, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(x0[:, :, 1:], ((1 - t) * x - t * flow)[:, :, 1:])


def test_a_mask_over_positions_replaces_only_those():
    latents = torch.ones(1, 16, 2, 4, 4)
    mask = torch.zeros(2, 4, 4)
    mask[0] = 1
    mask[1, :2] = 1
    given = Conditioning(latents, mask, torch.full((2,), 1e-4))
    times = {}

    def velocity(x, time, network_mask, step):
        times["t"] = time
        return torch.zeros_like(x)

    x0 = denoiser(velocity, given)(torch.full_like(latents, 5.0), 1.0, 0)
    assert (x0[:, :, 1, :2] == 1).all()
    assert (x0[:, :, 1, 2:] == 2.5).all()
    assert times["t"][0, 0] < 1e-3 < times["t"][0, 1]


def test_guidance_is_the_references_convention():
    calls = []

    def branch(value):
        def predict(x, sigma, step):
            calls.append(value)
            return torch.full_like(x, value)

        return predict

    x = torch.zeros(2)
    assert guided(branch(3.0), branch(1.0), 7.0)(x, 1.0, 0).tolist() == [17.0, 17.0]
    calls.clear()
    assert guided(branch(3.0), branch(1.0), 0.0)(x, 1.0, 0).tolist() == [3.0, 3.0]
    assert calls == [3.0]


def test_steps_are_reported_and_cancelling_stops_before_the_next_one():
    stop, seen = threading.Event(), []

    def on_step(step, total, x0):
        seen.append((step, total))
        if step == 3:
            stop.set()

    with pytest.raises(Cancelled, match="evaluation 4 of 11"):
        adams_bashforth(
            lambda x, sigma, step: x, torch.zeros(1), sigmas(10), on_step=on_step, cancel=stop
        )
    assert seen == [(1, 11), (2, 11), (3, 11)]
