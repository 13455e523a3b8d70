"""One forward of the small model against the reference: 5e-6 in fp32, and in bf16 no worse than the
reference is.
"""

import pytest
import torch
import torch._dynamo
from count_traffic import pytorch_attention
from goldens import load, relative_error, small_model

TOLERANCE = 5e-6
CASES = ["t2av", "i2av", "slg1", "i2av_slg2", "batch2", "batch2_i2av", "audio_only", "video_only"]
# Both towers with a time for each frame and two prompts of unequal length in a batch; and the same
# with a skipped layer. The other cases take no other way through the code but to leave a tower out.
COMPILED = ["batch2_i2av", "i2av_slg2"]
# What core takes on a card; the kernel for processors asks the system for free memory, which no
# compiler can follow.
PYTORCH = {"optimized_attention_override": pytorch_attention}


def forward(twin, tensors, about, dtype=torch.float32, **options):
    """Run a recorded case; returns velocities named as in the golden."""
    batch = [f".{i}" for i in range(2)] if "video.0" in tensors else [""]

    def stacked(name, pad=False):
        parts = [tensors[name + i] for i in batch if name + i in tensors]
        if pad:
            parts = [torch.nn.functional.pad(part, (0, 0, 0, 16 - len(part))) for part in parts]
        return torch.stack(parts).to(dtype) if parts else None

    video, audio = stacked("video"), stacked("audio")
    timestep = tensors["t"]
    options["cond_or_uncond"] = [1]
    if about.get("kwargs", {}).get("slg_layer"):
        options["ovi_skip_layer"] = about["kwargs"]["slg_layer"]
    context = stacked("vid_context", pad=True)
    audio_context = stacked("audio_context", pad=True)
    if video is None:
        return {
            "pred_audio": twin(audio.mT, timestep, audio_context, transformer_options=options).mT
        }
    if audio is None:
        return {"pred_video": twin(video, timestep, context, transformer_options=options)}
    if about["kwargs"].get("first_frame_is_clean"):
        by_frame = timestep[:, None].repeat(1, video.shape[2])
        by_frame[:, 0] = 0
        timestep = [by_frame, timestep]
    pair = twin([video, audio.mT], timestep, context, audio_context, transformer_options=options)
    return {
        f"pred_{name}{i}": x[int(i[1:] or 0)]
        for name, x in (("video", pair[0]), ("audio", pair[1].mT))
        for i in batch
    }


def squeezed(x):
    return x[0] if x.shape[0] == 1 else x


def check(velocities, tensors):
    assert set(velocities) == {name for name in tensors if name.startswith("pred_")}
    for name, velocity in velocities.items():
        assert relative_error(squeezed(velocity), tensors[name]) <= TOLERANCE, name


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_reference(case, gradients):
    """With gradients, as training nodes run it, nothing may be overwritten."""
    tensors, about = load(f"fusion_t32_{case}")
    with torch.set_grad_enabled(gradients):
        check(forward(small_model(), tensors, about), tensors)


@pytest.mark.parametrize("case", COMPILED)
def test_the_compiled_forward_equals_the_reference(case, pytestconfig):
    tensors, about = load(f"fusion_t32_{case}")
    torch._dynamo.reset()
    twin = torch.compile(
        small_model(), backend=pytestconfig.getoption("compile_backend"), fullgraph=True
    )
    with torch.inference_mode():
        check(forward(twin, tensors, about, **PYTORCH), tensors)


@pytest.mark.parametrize("case", ["t2av", "i2av"])
def test_bf16_is_no_further_from_fp32_than_the_reference_is(case):
    tensors, about = load(f"fusion_t32_{case}")
    reference, _ = load(f"fusion_t32_{case}_bf16")
    velocities = forward(small_model(torch.bfloat16), tensors, about, torch.bfloat16)
    for name, velocity in velocities.items():
        assert relative_error(velocity, tensors[name]) <= relative_error(
            reference[name], tensors[name]
        ), name
