"""Core's guidance nodes on Ovi, by stock KSampler: the clip of one step is the one computed by
hand, to 1e-5.
"""

import comfy.latent_formats
import comfy.sample
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from goldens import relative_error
from plain_forward import Changes, PlainOvi
from small_graph import parts
from small_weights import OviSizes, ovi_weights

pytestmark = pytest.mark.graph

CFG = 4.0
MIDDLE, STG = 2, 1  # of four blocks


def values_alone(block):
    return Changes(
        query_key_value=lambda where, _q, _k, value: value if where[1] == block else None
    )


def stretched(axis, positions):
    return positions * {"t": 1.2, "x": 1.5}.get(axis, 1.0) + {"y": 2.0}.get(axis, 0.0)


def normalised(_where, read, *_about):
    """Core's normalised attention guidance, of a batch of the positive and the negative prompt."""
    positive, negative = read
    guided = 5 * positive - 4 * negative
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    guided = guided * ratio.clamp(max=1.5) / ratio
    return torch.stack([(guided + positive) / 2, negative])


def as_pair(predict, changes):
    """Guidance of two prompts where something is changed for both."""
    positive, negative = predict(changes)
    return negative + CFG * (positive - negative)


def led_away(predict, changes, scale):
    """Guidance away from what the positive prompt gives where something is cut."""
    return as_pair(predict, Changes()) + scale * (predict(Changes())[0] - predict(changes)[0])


# By node: its settings; and by hand: what predicts both prompts, to the clip.
CASES = {
    "NAGuidance": (
        {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5},
        lambda predict: as_pair(predict, Changes(text_read=normalised)),
    ),
    "PerturbedAttentionGuidance": (
        {"scale": 3.0},
        lambda predict: led_away(predict, values_alone(MIDDLE), 3.0),
    ),
    "ScaleROPE": (
        {
            "scale_x": 1.5,
            "shift_x": 0.0,
            "scale_y": 1.0,
            "shift_y": 2.0,
            "scale_t": 1.2,
            "shift_t": 0.0,
        },
        lambda predict: as_pair(predict, Changes(positions=stretched)),
    ),
    "LTXVModalityGuidance": (
        {"modality_scale": 3.0, "start_percent": 0.0, "end_percent": 1.0},
        lambda predict: led_away(predict, Changes(cut={"video", "audio"}), 2.0),
    ),
    "LTXVSpatioTemporalGuidance": (
        {"scale": 1.0, "blocks": str(STG), "start_percent": 0.0, "end_percent": 1.0},
        lambda predict: led_away(predict, values_alone(STG), 1.0),
    ),
}


def predicted_by_hand(texts, shapes):
    """Return a function of changes that predicts the clean latents of both prompts from noise, each
    clip as one row.
    """
    weights = {
        name.removeprefix("video_model."): x
        for name, x in ovi_weights(OviSizes(layers=4), torch.float32, seed=1).items()
    }
    plain = PlainOvi(weights, heads=2, text_length=512)
    empty = NestedTensor([torch.zeros(shape) for shape in shapes])
    noise = [
        x.repeat_interleave(2, 0).double() for x in comfy.sample.prepare_noise(empty, 7).unbind()
    ]

    def predict(changes):
        velocities = plain(noise, torch.tensor([1000.0, 1000.0]), texts, changes)
        clean = [x - velocity for x, velocity in zip(noise, velocities, strict=True)]
        return torch.cat([x.flatten(1) for x in clean], dim=1)

    return predict


@pytest.mark.parametrize("node", CASES)
def test_one_step(run, runtime, graph, node):
    if node not in runtime.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this core has no {node}")
    settings, by_hand = CASES[node]
    text, latent = graph.text(), graph.latent()
    model = graph.add(node, model=graph.model(), **settings)
    link = graph.sample(model, text, latent_image=latent, steps=1, cfg=CFG)
    graph.show(link)
    result = run(graph)
    prompts = [result.value(text[0], slot)[0] for slot in (0, 1)]
    texts = [
        torch.cat([words for words, _ in prompts]),
        torch.cat([about.get("audio_context", words) for words, about in prompts]),
    ]
    video, audio = parts(result.value(link[0]))
    predict = predicted_by_hand(texts, [video.shape, audio.shape])
    process_out = comfy.latent_formats.Wan22().process_out
    expected = by_hand(predict)
    size = video[0].numel()
    wanted_video = process_out(expected[:size].reshape(video.shape).float())
    assert relative_error(video, wanted_video) < 1e-5
    assert relative_error(audio, expected[size:].reshape(audio.shape)) < 1e-5
    untouched = as_pair(predict, Changes())
    assert relative_error(expected[:size], untouched[:size]) > 1e-3
    assert relative_error(expected[size:], untouched[size:]) > 1e-3
