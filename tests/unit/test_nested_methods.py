"""What core's nodes may ask of a nested latent: clips of a batch, and a sentence for all else."""

import copy
import pickle
from types import SimpleNamespace

import comfy.utils
import pytest
import torch
from comfy.nested_tensor import NestedTensor

ADVICE = "'Ovi Separate Latent'"


def joint(clips=2, frames=3):
    audio = torch.randn(clips, 20, round((frames - 1) * 157 / 30))
    return NestedTensor([torch.randn(clips, 48, frames, 4, 4), audio])


def equal(one, streams):
    return all(map(torch.equal, one.unbind(), streams))


def test_clips_are_copied_repeated_and_cut_in_both_streams():
    latent = joint()
    video, audio = latent.unbind()
    copied = latent.clone()
    assert equal(copied, [video, audio])
    assert copied.unbind()[1].data_ptr() != audio.data_ptr()
    for sizes in [((3, 1, 1, 1, 1),), (3, 1, 1, 1, 1), ([3, 1, 1, 1, 1],), (3, 1, 1, 1)]:
        assert equal(latent.repeat(*sizes), [video.repeat(3, 1, 1, 1, 1), audio.repeat(3, 1, 1)])
    assert equal(latent.narrow(0, 1, 1), [video[1:], audio[1:]])
    assert equal(
        comfy.utils.repeat_to_batch_size(latent, 3), [x[[0, 1, 0]] for x in (video, audio)]
    )


def test_latents_form_a_batch():
    one, other = joint(2), joint(1)
    both = torch.cat((one, other), dim=0)
    assert equal(both, [torch.cat(x) for x in zip(one.unbind(), other.unbind(), strict=True)])
    assert equal(torch.cat([one]), one.unbind())


REFUSED = {
    "along time": lambda x: torch.cat((x, x), dim=-1),
    "with a tensor": lambda x: torch.cat((x, x.unbind()[0])),
    "tensor first": lambda x: torch.cat((x.unbind()[0], x)),
    "another size": lambda x: x.repeat(1, 1, 2, 1, 1),
    "cut in time": lambda x: x.narrow(2, 0, 1),
    "torch's narrow": lambda x: torch.narrow(x, 0, 0, 1),
    "a function": lambda x: torch.nan_to_num(x),
    "a method": lambda x: x.reshape(-1),
    "an assignment": lambda x: x.__setitem__((slice(None), slice(None), 0), 1),
}
FOR_IMAGES = {
    "mirrored": lambda x: torch.flip(x, dims=[2]),
    "turned": lambda x: torch.rot90(x, k=1, dims=[3, 2]),
    "cut": lambda x: x[:, :, :1, :1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_one_stream_can_is_refused_in_a_sentence(name):
    errors = AttributeError, IndexError, TypeError, ValueError
    with pytest.raises(errors, match=ADVICE) as caught:
        REFUSED[name](joint())
    assert "'Ovi Save Latent'" in str(caught.value)


@pytest.mark.parametrize("name", FOR_IMAGES)
def test_what_takes_dimensions_for_those_of_an_image_is_refused(name):
    with pytest.raises((IndexError, TypeError), match=r"made for latents of images.*'Ovi Decode'"):
        FOR_IMAGES[name](joint())


def test_latents_of_unlike_size_form_no_batch():
    with pytest.raises(ValueError, match="Latents of different size or length cannot form a batch"):
        torch.cat((joint(frames=3), joint(frames=5)))


@pytest.mark.parametrize(
    "streams",
    [
        [torch.zeros(1, 128, 3, 4, 4), torch.zeros(1, 8, 10, 16)],
        [torch.ones(2, 1, 3, 4, 4), torch.ones(2, 1, 10)],
        [torch.ones(3), torch.ones(())],
        [],
    ],
    ids=["other models", "masks", "odd ranks", "nothing"],
)
def test_streams_of_others_get_no_advice(streams):
    nested = NestedTensor(streams)
    assert not hasattr(nested, "reshape")
    with pytest.raises(AttributeError, match="has no attribute 'reshape'") as caught:
        nested.reshape(1)
    assert ADVICE not in str(caught.value)
    if streams:
        assert equal(nested.clone(), streams)


def test_who_asks_what_there_is_goes_on():
    latent = joint()
    assert getattr(latent, "sparse_mask", None) is None
    assert not hasattr(latent, "__len__")
    assert latent  # as before: an object, and true
    assert not torch.is_tensor(latent)
    assert (latent.unbind()[0] == latent) is False
    assert equal(copy.copy(latent), latent.unbind())
    assert equal(copy.deepcopy(latent), latent.unbind())
    assert equal(pickle.loads(pickle.dumps(latent)), latent.unbind())
    assert equal((latent * 2 - latent)[:1], [x[:1] for x in latent.unbind()])
    namespace = SimpleNamespace(samples=latent)
    assert namespace.samples is latent
