"""Training of the miniature: what is trained is what its files and the model's own code compute."""

from pathlib import Path

import find_comfyui
import pytest
import torch
from torch import nn

find_comfyui.import_extension()
from comfyui_ovi.miniature.training import (  # noqa: E402
    export,
    latents,
    loop,
    parts,
    settings,
    stages,
    text,
    towers,
    world,
)

WORDS, WIDTH = 14, settings.TEXT.width


@pytest.fixture(scope="module")
def clips():
    """Noise for latents, of 16 clips."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(16, 48, 3, 4, 4, generator=generator)
    return towers.Latents(video, torch.randn(16, 20, 11, generator=generator), torch.arange(16))


@pytest.fixture(scope="module")
def texts():
    """Captions of different lengths, padded to WORDS."""
    generator = torch.Generator().manual_seed(1)
    captions = torch.randn(16, 2, WORDS, WIDTH, generator=generator)
    for scene in range(16):
        captions[scene, :, 3 + scene % 6 :] = 0
    negatives = tuple(torch.randn(2, WORDS, WIDTH, generator=generator))
    for negative in negatives:
        negative[-2:] = 0
    nothing = torch.zeros(WORDS, WIDTH)
    nothing[0] = 1
    return towers.Texts(captions, nothing, negatives)


def random_towers(text_length: int, seed: int = 0):
    torch.manual_seed(seed)
    model = parts.twin_dit(text_length)
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    return model


@torch.no_grad()
def test_a_short_text_is_read_as_one_of_512_tokens(clips, texts):
    short, full = random_towers(WORDS), random_towers(512)
    batch = towers.draw(clips, texts, 4, torch.Generator().manual_seed(2))
    seen, heard = batch.video, batch.audio
    given = [seen.noisy, heard.noisy], [seen.time, heard.time], seen.text, heard.text

    expected = full(*given)
    made = short(*given, transformer_options=towers.reads_padding(seen.text, heard.text))
    unweighted = short(*given)

    for ours, theirs, wrong in zip(made, expected, unweighted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert (wrong - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("tower", ["video", "audio"])
@torch.no_grad()
def test_one_tower_alone_reads_its_text_so_too(clips, texts, tower):
    stream = getattr(towers.draw(clips, texts, 4, torch.Generator().manual_seed(3)), tower)
    given = stream.noisy, stream.time, stream.text
    made = random_towers(WORDS)(*given, transformer_options=towers.reads_padding(stream.text))
    torch.testing.assert_close(made, random_towers(512)(*given), rtol=0, atol=1e-5)


def test_both_streams_of_a_clip_have_one_noise_level_and_the_velocity_leads_back(clips, texts):
    batch = towers.draw(clips, texts, 64, torch.Generator().manual_seed(4))
    seen, heard = batch.video, batch.audio
    sigma = heard.time[:, 0] / 1000
    assert torch.equal(seen.time[:, 1], heard.time[:, 0])
    assert sigma.min() < 0.4
    assert sigma.max() > 0.9
    # x_sigma - sigma v is the clip itself, a row of the latents.
    clean = heard.noisy - sigma.view(-1, 1, 1) * heard.velocity
    assert (clean[:, None] - clips.audio).abs().amax((2, 3)).amin(1).max() < 1e-5


def test_a_given_first_frame_is_clean_and_not_counted(clips, texts):
    seen = towers.draw(clips, texts, 64, torch.Generator().manual_seed(5)).video
    given = seen.time[:, 0] == 0
    assert 0.2 < given.float().mean() < 0.5
    firsts = seen.noisy[given][:, :, 0]
    assert (firsts[:, None] - clips.video[:, :, 0]).abs().amax((2, 3, 4)).amin(1).max() == 0

    wrong = seen.velocity.clone()
    wrong[given, :, 0] += 100
    assert seen.error(wrong) == 0
    wrong[:, :, 1] += 1
    assert seen.error(wrong) > 0.1


def test_captions_are_dropped_for_both_streams_at_once(clips, texts):
    """And in their place come the empty text, or each stream's own negative prompt."""
    batch = towers.draw(clips, texts, 256, torch.Generator().manual_seed(6))
    streams = batch.video.text, batch.audio.text

    def which(read, choices):
        return (read[:, None] == choices).all(-1).all(-1)

    seen, heard = (which(read, texts.captions.flatten(0, 1)).any(1) for read in streams)
    assert torch.equal(seen, heard)
    assert torch.equal(streams[0][seen], streams[1][seen])
    assert 0.05 < (~seen).float().mean() < 0.3
    instead = [
        which(read[~seen], torch.stack([texts.nothing, negative]))
        for read, negative in zip(streams, texts.negatives, strict=True)
    ]
    assert torch.equal(*instead)
    assert instead[0].any(0).all()
    assert instead[0].any(1).all()


def test_the_video_vae_written_has_latents_of_mean_0_and_deviation_1(tmp_path):
    from comfy.latent_formats import Wan22
    from comfyui_ovi.ovi_model.load.video_vae import load_video_vae

    torch.manual_seed(0)
    vae = parts.video_vae(settings.VideoVAESettings())
    frames = torch.stack([clip.frames[:9] for clip in latents.draw_clips(4)])
    with torch.no_grad():
        encoded = vae.encode(frames.movedim(-1, 1) * 2 - 1)
        decoded = vae.decode(encoded)
    means = encoded.mean((0, 2, 3, 4))
    size = (encoded - means.view(1, -1, 1, 1, 1)).square().mean().sqrt()
    export.write_video_vae(tmp_path / "vae.safetensors", vae, means, float(size))

    loaded = load_video_vae(tmp_path / "vae.safetensors").first_stage_model.float()
    with torch.no_grad():
        again = loaded.encode(frames.movedim(-1, 1) * 2 - 1)
        seen = Wan22().process_in(again)
        torch.testing.assert_close(
            seen, (encoded - means.view(1, -1, 1, 1, 1)) / size, rtol=0, atol=0.02
        )
        torch.testing.assert_close(loaded.decode(again), decoded, rtol=0, atol=0.02)


def test_the_audio_vae_written_has_latents_of_deviation_1_and_the_same_decoder(tmp_path):
    from comfyui_ovi.ovi_model.load.audio_vae import load_audio_vae

    torch.manual_seed(0)
    model = parts.audio_autoencoder(settings.AudioVAESettings(), settings.VocoderSettings())
    with torch.no_grad():
        mel = model.mel_converter(latents.draw_sounds(4))
        encoded = model.vae.encode(mel).mean
        decoded = model.vae.decode(encoded)
        sound = model.vocoder(decoded)
    export.write_audio_vae(tmp_path / "audio.safetensors", model.vae, model.vocoder, 2.5)

    loaded = load_audio_vae(tmp_path / "audio.safetensors").first_stage_model.float()
    with torch.no_grad():
        again = loaded.vae.encode(mel).mean
        torch.testing.assert_close(again, encoded / 2.5, rtol=0, atol=0.01)
        torch.testing.assert_close(loaded.vae.decode(again), decoded, rtol=0, atol=0.03)
        torch.testing.assert_close(loaded.vocoder(decoded), sound, rtol=0, atol=0.01)


def test_the_towers_written_are_the_towers_trained(tmp_path):
    from comfyui_ovi.ovi_model.load.diffusion_model import load_model

    model = random_towers(WORDS, seed=3)
    export.write_towers(tmp_path / "ovi.safetensors", model)
    weights = load_model(
        str(tmp_path / "ovi.safetensors"), None, "default"
    ).model.diffusion_model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16()), name


def test_towers_that_were_joined_make_what_they_made_alone(clips, texts):
    video, audio = random_towers(WORDS, seed=1), random_towers(WORDS, seed=2)
    batch = towers.draw(clips, texts, 2, torch.Generator().manual_seed(7))
    seen, heard = batch.video, batch.audio
    with torch.no_grad():
        alone = video(seen.noisy, seen.time, seen.text), audio(heard.noisy, heard.time, heard.text)
        both = towers.join(video, audio)
        made = both([seen.noisy, heard.noisy], [seen.time, heard.time], seen.text, heard.text)
    for ours, theirs in zip(made, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    target = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def losses_of(part):
        def losses(generator, size):
            x = torch.randn(size, 4, generator=generator)
            return {"loss": (part(x) - x @ target.T).square().mean()}

        return losses

    def run(folder: Path, steps: list[int]):
        for stop in steps:
            torch.manual_seed(0)
            part = nn.Linear(4, 8)
            schedule = settings.Schedule(steps=60, batch=16, rate=0.01)
            calls = iter(range(stop))

            losses = losses_of(part)

            def stops(generator, size, losses=losses, calls=calls):
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return losses(generator, size)

            try:
                trained = loop.train("part", folder, part, schedule, stops)
            except KeyboardInterrupt:
                continue
        return trained.state_dict()

    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY", -1.0)
        whole, stopped = run(tmp_path / "whole", [99]), run(tmp_path / "stopped", [7, 5, 99])
    for name, weight in whole.items():
        assert torch.equal(weight, stopped[name])
    assert (tmp_path / "stopped" / "part.png").stat().st_size > 1000


def test_every_caption_is_read_in_pieces_of_words():
    pieces = text.processor()
    for scene in world.HELD_OUT_SCENES:
        tokens = pieces.encode(scene.caption())
        assert pieces.decode(tokens) == scene.caption()
        assert not any(pieces.is_byte(token) or pieces.is_unknown(token) for token in tokens)


def test_training_knows_the_negative_prompts_that_the_node_suggests():
    from comfyui_ovi.nodes.text import AUDIO_NEGATIVE, VIDEO_NEGATIVE

    assert (text.VIDEO_NEGATIVE, text.AUDIO_NEGATIVE) == (VIDEO_NEGATIVE, AUDIO_NEGATIVE)


def test_every_stage_has_its_function():
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "train", find_comfyui.EXTENSION / "miniature" / "training" / "train.py"
    )
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    assert all(callable(getattr(stages, name)) for line in train.STAGES for name in line)
