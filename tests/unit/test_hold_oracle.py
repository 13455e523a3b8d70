"""What is held decides what is made, with an exact model (`support/oracle.py`): masks, marks and
times of the holding nodes are right, apart from any training.

Each held part has a twin among the known clips: the same, louder, beside another free part. A model
that were told a wrong time would take the one for the other.
"""

from types import SimpleNamespace

import comfy.latent_formats
import oracle
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model import family
from comfyui_ovi.ovi_model.latent import geometry, held_pictures, held_sound, spans
from comfyui_ovi.ovi_model.latent.hold import CLEAN

FRAMES, CLIPS = 5, 4  # latent frames; known clips
STEPS = geometry.audio_steps(FRAMES)
LENGTH = spans.frames_of(FRAMES)
SIZE = 2  # of the latent, both sides
LOUDER = 2.0


def numbered(first, count):
    """Pictures that tell which frames they are."""
    numbers = torch.arange(first, first + count) / LENGTH
    return numbers.view(-1, 1, 1, 1).expand(-1, 16 * SIZE, 16 * SIZE, 3).contiguous()


class Known:
    """One clip of several, and VAEs that encode it: pictures by number, the sound as it is."""

    def __init__(self, picture_held: bool, batch: int = 1):
        draw = torch.Generator().manual_seed(5)
        # What is held is strong, so that it and not the noise decides.
        strong = torch.tensor([1.0, 0.15] if picture_held else [0.15, 1.0])
        video = torch.randn(CLIPS, 48, FRAMES, SIZE, SIZE, generator=draw) * strong[0]
        audio = torch.randn(CLIPS, 20, STEPS, generator=draw) * strong[1]
        held = video if picture_held else audio
        held[1] = held[0] * LOUDER
        self.clips, self.batch = oracle.Clips(video, audio), batch
        self.video = comfy.latent_formats.Wan22().process_out(video[:1])
        self.audio = audio[:1]
        self.vae = SimpleNamespace(
            encode=self._encode, latent_channels=48, latent_dim=3, first_stage_model=None
        )
        self.audio_vae = SimpleNamespace(encode=lambda _waveform: self.audio)

    def _encode(self, pixels):
        lasts = pixels[::4, 0, 0, 0] * LENGTH
        return torch.cat([self.video[:, :, [-(-round(float(n)) // 4)]] for n in lasts], dim=2)

    def empty(self):
        shapes = (self.batch, 48, FRAMES, SIZE, SIZE), (self.batch, 20, STEPS)
        return {"samples": NestedTensor([torch.zeros(shape) for shape in shapes])}

    def pictures(self, latent, first, count=1, keyframe="clean"):
        return held_pictures.hold_pictures(
            self.vae, latent, numbered(first, count), first, 1.0, keyframe
        )

    def sound(self, latent, start, end):
        waveform = torch.zeros(1, LENGTH * 667)
        return held_sound.hold_sound(self.audio_vae, latent, waveform, waveform, (start, end))

    def missed(self, made):
        """How far each clip of a batch is from the one held, at most."""
        return max(
            float((x - known).abs().max())
            for x, known in zip(made, (self.video, self.audio), strict=True)
        )


PICTURES = {
    "first": [(0, 1, "clean")],
    "last": [(LENGTH - 1, 1, "clean")],
    "middle": [(8, 1, "clean")],
    "first and last": [(0, 1, "clean"), (LENGTH - 1, 1, "clean")],
    "span": [(0, 9, "renoised")],
    "last frames": [(4, LENGTH - 4, "renoised")],
}


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("held", PICTURES.values(), ids=PICTURES)
def test_pictures_held_bring_their_clip(held, solver):
    known = Known(picture_held=True, batch=2)
    latent = known.empty()
    for first, count, keyframe in held:
        latent = known.pictures(latent, first, count, keyframe)
    made = oracle.sample(oracle.patcher(known.clips), latent, seed=1, solver_name=solver)
    assert known.missed(made) < 1e-3


@pytest.mark.parametrize("span", [(0, LENGTH / 24), (0.1, 0.6)], ids=["whole", "span"])
def test_a_sound_held_brings_its_clip(span):
    known = Known(picture_held=False)
    latent = known.sound(known.empty(), *span)
    made = oracle.sample(oracle.patcher(known.clips), latent)
    assert known.missed(made) < 1e-3


def test_without_anything_held_another_clip_may_come():
    known = Known(picture_held=True)
    made = [oracle.sample(oracle.patcher(known.clips), known.empty(), seed) for seed in range(4)]
    assert max(map(known.missed, made)) > 0.1


def test_a_wrong_time_brings_the_twin(monkeypatch):
    """So the tests above would see one: a clean keyframe of which the model is told the level of
    all else.
    """
    known = Known(picture_held=True)
    monkeypatch.setattr(
        family.OviBase, "process_timestep", lambda _self, timestep, **_unused: timestep
    )
    latent = known.pictures(known.empty(), LENGTH - 1)
    made = oracle.sample(oracle.patcher(known.clips), latent)
    assert known.missed(made) > 0.1


def test_held_parts_come_back_to_the_bit():
    """Also the picture, which samplers normalise and bring back."""
    known = Known(picture_held=True)
    latent = known.sound(known.pictures(known.empty(), 0, 9), 0.3, 0.6)
    video, audio = latent["samples"].unbind()
    masks = latent["noise_mask"].unbind()
    for solver in ("euler", "unipc", "dpm++"):
        made = oracle.sample(oracle.patcher(known.clips), latent, solver_name=solver)
        for x, given, mask in zip(made, (video, audio), masks, strict=True):
            is_held = (mask == 0).expand_as(x)
            assert is_held.any()
            assert torch.equal(x[is_held], given[is_held])


def test_a_mark_is_zero_to_a_sampler():
    x, given = torch.randn(1000) * 10, torch.randn(1000)
    assert torch.equal(x * CLEAN + given * (1 - CLEAN), given)
