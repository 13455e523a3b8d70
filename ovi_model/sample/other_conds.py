"""What nodes made for other models ask of single prompts and Ovi cannot give: refused here in
words, before core resolves it and a model is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

FRAMES = (
    "To give pictures use start_image of 'Ovi Latent' for the first frame and 'Ovi Hold Pictures' "
    "for others."
)
PLACES = (
    "Ovi reads every prompt for all of the clip: core hands over picture and sound as one row of "
    "numbers, which has no places. Remove that node, and say in the prompt what is where, as 'on "
    "the left' or 'in the background'."
)
# By the option that a node sets. No Ovi clip has a use for these.
ALWAYS = {
    "control": "A ControlNet is applied to a prompt (as 'Apply ControlNet' does), but ControlNets "
    f"add to the layers of the one model they were trained for. Remove that node. {FRAMES}",
    "gligen": "GLIGEN gives words a box in the picture ('GLIGENTextBoxApply'), in layers of a "
    "U-Net, which Ovi does not have. Remove that node, and say in the prompt what is where.",
}
# A picture without sound has places.
JOINT = {
    "area": "A prompt is given an area of the picture (as 'Conditioning (Set Area)' and its like "
    f"do). {PLACES}",
    "mask": f"A prompt is given a mask (as 'Conditioning (Set Mask)' and its like do). {PLACES}",
}


def check(options: dict, is_joint: bool) -> None:
    """Raise ValueError where the options of one prompt, as core's samplers have them, ask for what
    Ovi cannot give.

    is_joint: whether picture and sound are sampled together.
    """
    for option, sentence in (ALWAYS | JOINT if is_joint else ALWAYS).items():
        if options.get(option) is not None:
            raise ValueError(sentence)


def check_all(original, is_ours: Callable):
    """Wrap core's CFGGuider.sample: all prompts of an Ovi model are looked at first.

    is_ours tells the family's models from all others.
    """

    @functools.wraps(original)
    def sample(self, noise, latent_image, *args, **kwargs):
        if is_ours(self.model_patcher.model):
            for prompts in self.original_conds.values():
                for options in prompts:
                    check(options, latent_image.is_nested)
        return original(self, noise, latent_image, *args, **kwargs)

    return sample
