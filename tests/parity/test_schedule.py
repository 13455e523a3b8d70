"""Noise levels, timesteps and solver trajectories against the reference's schedulers."""

import pytest
import torch
from comfyui_ovi.ovi_model.network.model import WHOLE_TIMESTEPS
from comfyui_ovi.ovi_model.sample.solver import SOLVERS, sample_flow_unipc, shifted_sigmas
from goldens import load, relative_error

SCHEDULES = [(1, 5), (2, 5), (4, 5), (6, 5), (8, 5), (20, 5), (50, 5), (8, 3), (10, 1), (10, 11)]
# What the golden keeps of a trajectory of 50 steps.
KEPT = {50: [0, 10, 25, 40, 49, 50]}


class Field:
    """A denoiser whose velocity is known: v = a x + b sin(3 t / 1000) + c. Keeps every state it is
    asked about; cuts its timesteps when a sampler asks for that.
    """

    def __init__(self, recorded, dtype):
        self.a, self.b, self.c, self.noise = (
            recorded[name].to(dtype) for name in ("a", "b", "c", "x0")
        )
        self.states = []

    def __call__(self, x, sigma, model_options=None):
        self.states.append(x)
        time = sigma[0].float() * 1000
        if (model_options or {}).get("transformer_options", {}).get(WHOLE_TIMESTEPS):
            time = time.floor()
        wave = torch.sin(time.double() / 1000 * 3)
        return x - sigma[0] * (self.a * x + self.b * wave.to(x.dtype) + self.c)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("steps", "shift"), SCHEDULES)
def test_noise_levels_are_the_reference_s_to_the_last_bit(steps, shift, solver):
    recorded, _ = load("schedules")
    sigmas = shifted_sigmas(steps, float(shift), solver=solver)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, recorded[f"{solver}.{steps}.{shift}.sigmas"])
    times, expected = sigmas[:-1] * 1000, recorded[f"{solver}.{steps}.{shift}.timesteps"]
    if solver == "euler":
        assert torch.equal(times, expected)
        return
    # A level that is whole in float32 can be a hair less in the reference's float64.
    is_lower = times.floor().long() == expected + 1
    assert torch.equal(times.floor().long() - is_lower.long(), expected)
    assert not is_lower.any() or solver == "dpm++"
    assert (times[is_lower] == times[is_lower].floor()).all()


@pytest.mark.parametrize(
    ("dtype", "name", "tolerance"), [(torch.float64, "64", 1e-6), (torch.float32, "32", 5e-6)]
)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 8, 20, 50])
def test_trajectory_through_a_known_velocity_field(steps, dtype, name, tolerance, solver):
    recorded, about = load("solver_toy")
    field = Field(recorded, dtype)
    sigmas = shifted_sigmas(steps, about["shift"], solver=solver)
    # The reference starts from the noise itself; ComfyUI hands samplers the noise times the first
    # level.
    final = SOLVERS[solver](field, field.noise * sigmas[0].to(dtype), sigmas)
    states = [*field.states, final]
    for index, expected in zip(
        KEPT.get(steps, range(steps + 1)), recorded[f"{solver}.{steps}.traj{name}"], strict=True
    ):
        assert relative_error(states[index], expected) <= tolerance, f"step {index}"


def test_levels_that_do_not_fall_are_refused():
    field = Field(load("solver_toy")[0], torch.float32)
    with pytest.raises(ValueError, match=r"sigmas must fall.*0\.5 after 0\.5"):
        sample_flow_unipc(field, field.noise, torch.tensor([1.0, 0.5, 0.5, 0.0]))
    assert field.states == []
