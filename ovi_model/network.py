"""The Ovi network inside a MODEL."""

from __future__ import annotations


def network_of(model):
    """Return the twin DiT of a ModelPatcher.

    Raises ValueError if the model is of another family.
    """
    network = model.get_model_object("diffusion_model")
    if not hasattr(network, "audio_model"):
        raise ValueError(
            f"model is a {type(network).__name__}, not an Ovi: connect 'Load Diffusion Model' with an Ovi file, or "
            "'Ovi Model Loader'."
        )
    return network
