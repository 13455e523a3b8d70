"""Random weights of an Ovi whose velocity changes as slowly over the noise levels as a trained
model's may.
"""

import math

import torch
from small_weights import OviSizes, Weights, ovi_weights

# A wave of this many timesteps, twice all there are, is the shortest that a slow tower hears.
SHORTEST_WAVE = 2000


def slow_weights(
    sizes: OviSizes, dtype: torch.dtype, seed: int, fast_sound: bool = False
) -> Weights:
    """The fused Ovi file, deaf to the fast waves of the time embedding.

    Random weights hear the fastest wave, 6 timesteps long, as loudly as any, so that neighbouring
    steps have nothing in common and a cache nothing to save; training mutes what does not help to
    predict.
    fast_sound: the audio tower hears them all, and the video tower does not read from it what would
    make it fast too.
    """
    weights = ovi_weights(sizes, dtype, seed)
    half = sizes.freq_dim // 2
    first = math.ceil(half * math.log(SHORTEST_WAVE / (2 * math.pi)) / math.log(10000))
    for tower in ("video_model",) if fast_sound else ("video_model", "audio_model"):
        heard = weights[f"{tower}.time_embedding.0.weight"]
        heard.unflatten(1, (2, half))[..., :first] = 0  # cosines, then sines, the fastest first
        heard *= (half / (half - first)) ** 0.5
    if fast_sound:
        for name in weights:
            if name.startswith("video_model") and ".v_fusion." in name:
                weights[name].zero_()
    return weights
