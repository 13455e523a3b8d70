"""What patches and callers keep of a forward stays as it was, though blocks write over their own
hidden states.
"""

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from goldens import load, relative_error, small_model

TENSORS, _ = load("fusion_t32_t2av")


def run(given=None, **options):
    """One forward without gradients: velocities of picture and sound."""
    names = ("video", "audio", "vid_context", "audio_context")
    video, audio, *texts = given or [TENSORS[name][None] for name in names]
    with torch.inference_mode():
        return small_model()([video, audio.mT], TENSORS["t"], *texts, options)


def same(pair, other):
    return all(relative_error(x, y) < 1e-6 for x, y in zip(pair, other, strict=True))


def test_what_the_caller_gave():
    given = [
        TENSORS[name][None].clone() for name in ("video", "audio", "vid_context", "audio_context")
    ]
    kept = [x.clone() for x in given]
    run(given)
    assert all(torch.equal(x, y) for x, y in zip(given, kept, strict=True))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_a_replaced_block_was_given_and_gave(index):
    """A cache gives again what it has kept, as the blocks after it had it the first time."""
    kept = []

    def keep(args, extra):
        given_then = [x.clone() for x in args["img"]]
        out = extra["original_block"](args)
        kept.append((args["img"], given_then, out["img"], [x.clone() for x in out["img"]]))
        return out

    first = run(patches_replace={"dit": {("double_block", index): keep}})
    given, given_then, gave, gave_then = kept[0]
    assert all(
        torch.equal(x, y) for x, y in zip((*given, *gave), (*given_then, *gave_then), strict=True)
    )
    again = run(
        patches_replace={"dit": {("double_block", index): lambda _args, _extra: {"img": gave}}}
    )
    assert same(first, run())
    assert same(first, again)


def test_a_block_left_out_by_a_replacement():
    skipped = {"dit": {("double_block", 1): lambda args, _: {"img": args["img"]}}}
    assert same(run(patches_replace=skipped), run(ovi_skip_layer=1, cond_or_uncond=[1]))


def test_what_an_attention_override_was_given_and_gave():
    kept = []

    def keep(_original, *args, **kwargs):
        out = attention_pytorch(*args, **kwargs)
        kept.extend((x, x.clone()) for x in (*args[:3], out))
        return out

    first = run(optimized_attention_override=keep)
    assert all(torch.equal(x, then) for x, then in kept)
    outputs = iter([out for out, _ in kept[3::4]])
    assert same(first, run(optimized_attention_override=lambda *_args, **_kwargs: next(outputs)))
