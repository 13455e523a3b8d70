"""Clips of a batch are those made alone."""

import torch
from comfyui_ovi.miniature.training import batches, generate, world
from comfyui_ovi.ovi_model.load.miniature import FOLDER


def test_each_clip_of_a_batch_is_the_one_made_alone(monkeypatch):
    """Of captions of unlike lengths, their sounds held; three clips in batches of two."""
    monkeypatch.setattr(batches, "BATCH", 2)
    guidance = generate.Guidance(steps=2)
    scenes = world.HELD_OUT_SCENES[:3]
    with torch.inference_mode():
        parts = generate.load(FOLDER)
        clips = [world.film(scene, 7 + number) for number, scene in enumerate(scenes)]
        asks = [
            batches.Ask(
                clip.scene.caption(),
                1000 + number,
                generate.hold(parts, clip, "sound", generate.empty(parts)),
            )
            for number, clip in enumerate(clips)
        ]
        together = batches.make_clips(parts, asks, guidance)
        alone = [
            generate.make_clip(parts, ask.caption, ask.seed, guidance, ask.latent) for ask in asks
        ]
    for made, expected in zip(together, alone, strict=True):
        for actual, wanted in zip(made, expected, strict=True):
            assert actual.shape == wanted.shape
            torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-3)
    assert not torch.equal(together[0][0], together[1][0])
