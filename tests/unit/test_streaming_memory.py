"""What core is told, before it loads the model, of the memory that a clip in blocks keeps."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.load import miniature
from comfyui_ovi.ovi_model.load.audio_vae import load_audio_vae
from comfyui_ovi.ovi_model.load.video_vae import load_video_vae
from comfyui_ovi.ovi_model.network import past
from comfyui_ovi.ovi_model.preview.film_so_far import Player
from comfyui_ovi.ovi_model.sample import streaming, streaming_memory
from goldens import small_patcher
from weights import seeded

SIGMAS = torch.tensor([1.0, 0.8, 0.0])


@pytest.fixture
def seen(monkeypatch):
    """What core is asked for when it loads, and what runs keep, in order."""
    asked, kept = [], []
    load, begin = comfy.model_management.load_models_gpu, past.Past.__init__

    def watch(models, *args, **asks):
        asked.append((models, asks["memory_required"], asks.get("minimum_memory_required")))
        return load(models, *args, **asks)

    def note(self, *args):
        begin(self, *args)
        kept.append(self)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watch)
    monkeypatch.setattr(past.Past, "__init__", note)
    return asked, kept


def stream(patcher, frames=5, batch=1, size=(4, 6), sampler=None, **options):
    shapes = (batch, 48, frames, *size), (batch, 20, 5 * frames)
    noise = NestedTensor([seeded(f"noise {shape}", shape) for shape in shapes])
    guider = comfy.samplers.CFGGuider(patcher)
    text = [[seeded("text", (1, 16, 32)), {}]]
    guider.set_conds(text, text)
    guider.set_cfg(1.0)
    sampler = sampler or comfy.samplers.KSAMPLER(
        streaming.sample_streaming, {"frames_per_block": 2, **options}
    )
    empty = NestedTensor([torch.zeros(shape) for shape in shapes])
    return guider.sample(noise, empty, sampler, SIGMAS, disable_pbar=True, seed=0)


def forward_memory(shape):
    return small_patcher().model.memory_required(shape)


def bytes_of(kept):
    return sum(x.nbytes for pairs in kept.kept.values() for pair in pairs for x in pair)


@pytest.mark.parametrize("keep", streaming_memory.KEEP)
@pytest.mark.parametrize(
    "clip", [{"frames": 2}, {}, {"frames": 8}, {"batch": 2}, {"size": (5, 6)}], ids=str
)
def test_core_is_asked_for_what_is_kept_beside_a_forward(seen, clip, keep):
    asked, kept = seen
    patcher = small_patcher()
    stream(patcher, keep=keep, **clip)
    stream(patcher, sampler=comfy.samplers.sampler_object("euler"), **clip)
    on_card = 0 if keep == "in main memory" else bytes_of(kept[0])
    assert (bytes_of(kept[0]) > 0) == (clip.get("frames") != 2)  # that is one block
    (_, most, with_it), (_, twice, without) = asked
    assert with_it == without + on_card
    assert most == max(twice, with_it)
    assert patcher.model.memory_floor == 0


@pytest.mark.parametrize("has_sound", [True, False], ids=["sound", "silent"])
def test_what_decodes_blocks_is_loaded_with_the_model_and_has_room(seen, has_sound):
    """The larger of a forward and a decoding, which do not run at once."""
    asked, kept = seen
    vae, audio_vae = vaes = (
        load_video_vae(miniature.FOLDER / miniature.VIDEO_VAE),
        load_audio_vae(miniature.FOLDER / miniature.AUDIO_VAE),
    )
    shown = []
    player = Player(vae, audio_vae if has_sound else None, shown.append)
    stream(small_patcher(), player=player, size=(4, 6))
    assert [len(clip.frames) for clip in shown] == [5, 13]
    (models, _, needed), *_ = asked
    assert {one.patcher for one in vaes[: 1 + has_sound]} <= set(models)
    decoding = player.memory_required((1, 48, 5, 4, 6), 2)
    assert needed == max(decoding, forward_memory(shape=(1, 1, 5800))) + bytes_of(kept[0])
    assert decoding > 2 * bytes_of(kept[0])


def test_nothing_stays_reserved_after_a_refusal(monkeypatch):
    patcher = small_patcher()
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda _device: 2**10)
    with pytest.raises(ValueError, match=r"keeps 0\.0 GiB of this clip, and cpu has 0\.0"):
        stream(patcher)
    assert patcher.model.memory_floor == 0
    stream(patcher, keep="in main memory")
