"""What core is told, before it loads the model, of the memory that a clip in blocks keeps."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.network import past
from comfyui_ovi.ovi_model.sample import streaming, streaming_memory
from goldens import small_patcher
from weights import seeded

SIGMAS = torch.tensor([1.0, 0.8, 0.0])


@pytest.fixture
def seen(monkeypatch):
    """What core is asked for when it loads, and what runs keep, in order."""
    asked, kept = [], []
    load, begin = comfy.model_management.load_models_gpu, past.Past.__init__

    def watch(models, *args, memory_required, minimum_memory_required, **kwargs):
        asked.append((memory_required, minimum_memory_required))
        return load(
            models,
            *args,
            memory_required=memory_required,
            minimum_memory_required=minimum_memory_required,
            **kwargs,
        )

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
    (_, with_it), (twice, without) = asked
    assert with_it == without + on_card
    assert asked[0][0] == max(twice, with_it)
    assert patcher.model.memory_floor == 0


class _Decoder(NamedTuple):
    """What a player is asked for; the real one is in tests/graph/test_streaming.py."""

    patchers: list

    def memory_required(self, shape, frames_per_block):
        assert list(shape) == [1, 48, 5, 4, 6]
        return 1e9 * frames_per_block

    def start(self):
        return nullcontext()


def test_what_decodes_blocks_is_loaded_with_the_model_and_has_room(seen):
    """The larger of a forward and a decoding, which do not run at once."""
    asked, kept = seen
    other = wan_patcher()
    patcher = small_patcher()
    stream(patcher, player=_Decoder([other]))
    (_, needed) = asked[0]
    assert needed == 2e9 + bytes_of(kept[0])
    assert other in loaded_with(patcher)


def test_nothing_stays_reserved_after_a_refusal(monkeypatch):
    patcher = small_patcher()
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda _device: 2**10)
    with pytest.raises(ValueError, match=r"keeps 0\.0 GiB of this clip, and cpu has 0\.0"):
        stream(patcher)
    assert patcher.model.memory_floor == 0
    stream(patcher, keep="in main memory")
