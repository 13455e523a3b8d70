"""Sound made in chunks is the sound made at once: a sample sees all it depends on, and not a mel
frame less would do.
"""

import comfy.model_management
import comfy.utils
import count_bytes
import pytest
import small_weights
import torch
from comfy.ldm.mmaudio.vae.bigvgan import BigVGANVocoder
from comfyui_ovi.ovi_model.decode import audio
from comfyui_ovi.ovi_model.load.audio_vae import SizedAutoencoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small():
    model = SizedAutoencoder(16, 64).vocoder
    model.load_state_dict(small_weights.vocoder_weights(seed=3))
    return model.requires_grad_(False)


def in_chunks(monkeypatch, small, mel, longest, field=None):
    monkeypatch.setattr(audio, "MAX_CHUNK", longest)
    if field is not None:
        monkeypatch.setattr(audio, "receptive_field", lambda _: field)
    return audio.vocode(small, mel, CPU)


@pytest.mark.parametrize(
    ("length", "longest"), [(1, 1), (40, 1000), (95, 94), (120, 60), (121, 40), (130, 17)]
)
def test_pieces_equal_the_whole(monkeypatch, small, length, longest):
    mel = torch.randn(1, 80, length, generator=torch.manual_seed(length))
    whole = small(mel)
    actual = in_chunks(monkeypatch, small, mel, longest)
    assert actual.shape == whole.shape == (1, 1, 256 * length)
    assert whole.abs().max() > 0.03
    torch.testing.assert_close(actual, whole, rtol=0, atol=1e-6)


def heard(sound):
    """The mel frames whose samples an undefined number has reached."""
    return sound.isnan().view(-1, 256).any(1).nonzero().flatten().tolist()


def test_the_reach_is_that_of_the_layers(small):
    """An undefined number reaches whatever depends on it, however little."""
    assert audio.receptive_field(small) == 38
    mel = torch.zeros(1, 80, 120)
    mel[..., 60] = torch.nan
    assert heard(small(mel)) == list(range(60 - 38, 60 + 38 + 1))


@pytest.mark.parametrize(
    "config", [{"resblock": "2"}, {"upsample_rates": [8, 2], "upsample_kernel_sizes": [16, 6]}]
)
def test_the_reach_follows_the_config(config):
    common = {
        "num_mels": 80,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "upsample_initial_channel": 8,
    }
    common |= {
        "resblock": "1",
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 7]],
    }
    model = BigVGANVocoder(
        common | {"activation": "snakebeta", "snake_logscale": True} | config
    ).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    mel = torch.zeros(1, 80, 101)
    mel[..., 50] = torch.nan
    frames = model(mel).isnan().view(101, -1).any(1).nonzero().flatten()
    assert audio.receptive_field(model) == 50 - frames.min() == frames.max() - 50


@pytest.mark.parametrize("frame", [80 - 38, 79 + 38])
@pytest.mark.parametrize(("less", "same"), [(0, True), (1, False)])
def test_one_mel_frame_less_of_context_would_be_too_little(monkeypatch, small, frame, less, same):
    mel = torch.zeros(1, 80, 160)
    mel[..., frame] = torch.nan  # heard in the first frame beyond the cut, and no further
    actual = in_chunks(monkeypatch, small, mel, 80, field=38 - less)
    assert (heard(actual) == heard(small(mel))) is same


def test_no_context_is_heard(monkeypatch, small):
    mel = torch.randn(1, 80, 120)
    assert (in_chunks(monkeypatch, small, mel, 60, field=0) - small(mel)).abs().max() > 1e-3


def counted(monkeypatch, model, length, longest):
    mel = torch.zeros(1, 80, length, device="meta")
    with count_bytes.CountBytes() as count:
        in_chunks(monkeypatch, model, mel, longest)
    return count.peak


def test_memory_is_bounded(monkeypatch):
    """Beyond one chunk only the finished samples, four bytes each, take more."""
    with torch.device("meta"):
        model = SizedAutoencoder(16, 256).vocoder.requires_grad_(False)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *_: tensor
    )  # they stay on the meta device
    one, three = (counted(monkeypatch, model, length, 300) for length in (300, 900))
    whole = counted(monkeypatch, model, 900, 900)
    assert three < one * (1 + 2 * 38 / 300) + 2 * 900 * 256 * 4 < 0.55 * whole


def test_progress_and_interrupt_between_pieces(monkeypatch, small):
    steps = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: steps.append((done, total))
    )
    in_chunks(monkeypatch, small, torch.zeros(1, 80, 50), 20)
    # Newer versions of ComfyUI leave out what follows too soon.
    assert {(1, 3), (3, 3)} <= set(steps) <= {(1, 3), (2, 3), (3, 3)}

    def stop(done, *_, **__):
        comfy.model_management.interrupt_current_processing(done == 1)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        in_chunks(monkeypatch, small, torch.zeros(1, 80, 50), 20)
