"""Context windows over picture and sound: which steps of sound a window of frames takes.

A window is given the sound that the model was trained to make with so many frames: 157 steps with
31. Core cuts the picture; its window may have one frame more in front, the anchor, whose sound is
then part of the window too.
"""

from __future__ import annotations

import functools

from ..config import AUDIO_STEPS_PER_INTERVAL


def sound_of(frames: list[int], total_frames: int, total_steps: int, is_anchored: bool) -> range:
    """Return the audio steps of a window of latent frames.

    total_frames, total_steps: of the whole clip; is_anchored: whether core puts the frame before
    the window in front of it, where there is one.
    Raises ValueError for frames that do not follow one another, since sound cannot be cut so.
    """
    first, last = frames[0], frames[-1]
    if list(frames) != list(range(first, last + 1)):
        raise ValueError(
            "This window of frames turns around or leaves frames out, and sound cannot be cut so. "
            "Choose context_schedule 'standard_static' or 'standard_uniform' with context_stride 1 "
            "on the context windows node."
        )
    first = max(0, first - is_anchored)
    start, stop = _edge(first), _edge(last)
    if last == total_frames - 1:
        start, stop = max(0, start + total_steps - stop), total_steps
    stop = min(total_steps, max(start + 1, stop))
    return range(min(start, stop - 1), stop)


def _edge(frame: int) -> int:
    """The audio step nearest to a latent frame's place on the clock; halves go up, so that all
    windows of one length have as many steps.
    """
    return int(frame * AUDIO_STEPS_PER_INTERVAL + 0.5 + 1e-9)


def check_overlap(handler) -> None:
    """Raise ValueError if windows leave sound between them to nobody.

    handler: core's IndexListContextHandler. A window without an anchor ends with its last frame's
    place on the clock and the next one begins with its first frame's, 5 steps later, unless they
    overlap.
    """
    is_apart = handler.context_schedule.name == "batched" or handler.context_overlap < 1
    if is_apart and not handler.causal_window_fix:
        raise ValueError(
            "These context windows do not overlap, so 0.17 s of sound between two of them would "
            "be in neither. Set context_overlap to 4 frames or more and context_schedule to "
            "'standard_static', or switch causal_window_fix on."
        )


def anchor_both(original, is_ours):
    """Wrap core's IndexListContextHandler.evaluate_context_windows: the model hears of the anchor,
    and every clip of a batch gets its timestep.

    Core cuts the timesteps of a batch as if they were of frames. All clips of a batch have one.
    """

    @functools.wraps(original)
    def evaluate_context_windows(
        self, calc_cond_batch, model, x_in, conds, timestep, *args, **kwargs
    ):
        if not is_ours(model):
            return original(self, calc_cond_batch, model, x_in, conds, timestep, *args, **kwargs)
        check_overlap(self)
        model.windows_are_anchored = self.causal_window_fix

        def for_every_clip(model, conds, x, timestep, options):
            return calc_cond_batch(model, conds, x, timestep.expand(len(x)), options)

        return original(self, for_every_clip, model, x_in, conds, timestep[:1], *args, **kwargs)

    return evaluate_context_windows
