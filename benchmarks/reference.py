"""Loads the reference implementation from a checkout of character-ai/Ovi, without what it needs
installed.

Its files are read and never written. Stand-ins take the place of diffusers, whose classes it only
inherits from, and of flash-attn, so that it attends with the function the others are measured with;
what it does before that call stays.
"""

import contextlib
import importlib.abc
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# In the order they import each other.
PACKAGES = ("ovi", "ovi.modules", "ovi.distributed_comms")
MODULES = (
    "ovi.distributed_comms.parallel_states",
    "ovi.distributed_comms.communications",
    "ovi.modules.attention",
    "ovi.modules.model",
    "ovi.modules.fusion",
)
# What autocast does in float32 on a card, as far as the reference does it.
PRECISE = ("pow", "rsqrt", "layer_norm")


class _Source(importlib.abc.SourceLoader):
    """Loads a file as if it were written for another precision and any device; keeps no compiled
    copy beside it.
    """

    def __init__(self, file: Path, dtype: torch.dtype):
        self.file, self.dtype = file, dtype

    def get_filename(self, _name: str) -> str:
        return str(self.file)

    def get_data(self, path: str) -> bytes:
        text = Path(path).read_text(encoding="utf-8").replace("q.device.type == 'cuda'", "True")
        if self.dtype == torch.float32:
            text = re.sub(r"\bbfloat16\b", "float32", text.replace(".bfloat16()", ".float()"))
        return text.encode()


def stand_ins() -> dict[str, ModuleType | None]:
    """Modules by name; None for what must not be found even where it is installed."""
    made = {
        name: ModuleType(name)
        for name in (
            "diffusers",
            "diffusers.configuration_utils",
            "diffusers.models",
            "diffusers.models.modeling_utils",
        )
    }
    made["diffusers.configuration_utils"].ConfigMixin = type("ConfigMixin", (), {})
    made["diffusers.configuration_utils"].register_to_config = lambda function: function
    made["diffusers.models.modeling_utils"].ModelMixin = nn.Module
    made["flash_attn"] = ModuleType("flash_attn")
    made["flash_attn"].flash_attn_varlen_func = attend
    return {**made, "flash_attn_interface": None}


def attend(
    q: Tensor, k: Tensor, v: Tensor, max_seqlen_q: int, max_seqlen_k: int, **_options
) -> Tensor:
    """PyTorch's attention as core calls it, under flash-attn's name; clips of one length, each [B *
    L, H, d].
    """
    lengths = (max_seqlen_q, max_seqlen_k, max_seqlen_k)
    by_head = (
        x.unflatten(0, (-1, n)).transpose(1, 2) for x, n in zip((q, k, v), lengths, strict=True)
    )
    return attend_by_head(*by_head).transpose(1, 2).flatten(0, 1)


def attend_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's attention as core calls it; all [B, H, L, d]."""
    from comfy.ldm.modules.attention import attention_pytorch

    heads = query.shape[1]
    return attention_pytorch(query, key, value, heads, skip_reshape=True, skip_output_reshape=True)


@contextlib.contextmanager
def replaced(modules: dict) -> Iterator[None]:
    """Let imports inside find these modules."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def load(checkout: Path, dtype: torch.dtype) -> type[nn.Module]:
    """Return the reference's FusionModel, computing in bfloat16 or float32.

    Raises SystemExit where the folder holds no checkout.
    """
    if not (checkout / "ovi/modules/fusion.py").is_file():
        raise SystemExit(
            f"{checkout} holds no ovi/modules/fusion.py: give --reference the folder of a checkout "
            "of https://github.com/character-ai/Ovi."
        )
    for name in PACKAGES:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    with replaced(stand_ins()):
        for name in MODULES:
            file = checkout / (name.replace(".", "/") + ".py")
            spec = importlib.util.spec_from_loader(name, _Source(file, dtype))
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules[MODULES[-1]].FusionModel


class AutocastOfACard(TorchFunctionMode):
    """Does on the meta device, which has no autocast, what autocast to bfloat16 does on a card."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in PRECISE:
            args = [
                x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args
            ]
            kwargs = {
                k: x.float() if isinstance(x, Tensor) else x for k, x in (kwargs or {}).items()
            }
        return func(*args, **(kwargs or {}))


def build(fusion_model: type[nn.Module], video, audio) -> nn.Module:
    """Return the reference, or what is built alike, on the meta device, of our configs' sizes."""
    common = {"qk_norm": True, "cross_attn_norm": True, "window_size": (-1, -1)}

    def sizes(config) -> dict:
        names = (
            "dim",
            "ffn_dim",
            "freq_dim",
            "text_dim",
            "num_heads",
            "num_layers",
            "in_dim",
            "out_dim",
            "eps",
        )
        return (
            {name: getattr(config, name) for name in names}
            | {"text_len": config.text_length}
            | common
        )

    with torch.device("meta"):
        model = fusion_model(
            {**sizes(video), "model_type": "ti2v", "patch_size": video.patch_size},
            {
                **sizes(audio),
                "model_type": "t2a",
                "patch_size": (1,),
                "temporal_rope_scaling_factor": 0.19676,
            },
        )
    return model.eval().requires_grad_(False)


def run(
    model: nn.Module, latents: list[Tensor], time: Tensor, text: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a forward as the reference's engine does; latents as ours: [B, 48, F, H, W] and [B, 20,
    L].

    Returns velocities of every clip: pictures [48, F, H, W] and sounds [L, 20].
    """
    video, audio = latents
    tokens = video.shape[2:].numel() // torch.Size(model.video_model.patch_size).numel()
    clips = (list(video), list(audio.transpose(1, 2)), time, list(text), list(text))
    mixed = text.dtype != torch.float32
    precise = AutocastOfACard() if video.is_meta and mixed else contextlib.nullcontext()
    with (
        warnings.catch_warnings(),
        precise,
        torch.autocast("cuda", text.dtype, enabled=video.is_cuda and mixed),
    ):
        warnings.filterwarnings("ignore", message=".*Disabling autocast")
        return model(*clips, tokens, audio.shape[2])
