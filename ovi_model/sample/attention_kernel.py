"""A choice of attention kernel for a MODEL, among core's own functions; core's choice stays where
one cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from comfy.ldm.modules import attention
from torch import Tensor

from ..core_facts import choose
from ..log import log
from ..network.model import diffusion_model

OVERRIDE = "optimized_attention_override"
HALF = (torch.float16, torch.bfloat16)


class Kernel(NamedTuple):
    """What core calls a kernel, what brings it, and what it runs on; no devices or dtypes: all of
    them.
    """

    registered: str
    package: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    capability: tuple[int, int] = (0, 0)
    fewest_tokens: int = 0

    def takes(self, query: Tensor, key: Tensor) -> bool:
        """Whether a call is for this kernel; query and key are [B, L, H * d]. No more than a
        compiler can read.
        """
        fits = self._runs_on(query.device) and self._computes_in(query.dtype)
        return fits and min(query.shape[1], key.shape[1]) >= self.fewest_tokens

    def find_obstacle(self, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
        """Return what keeps a model on this device, in this precision, from the kernel and what to
        do; or nothing.
        """
        if not self._runs_on(device):
            return (
                f"needs a CUDA card and this model runs on '{device.type}'",
                "choose 'pytorch' or 'auto'",
            )
        if not self.is_installed():
            advice = (
                f"install the package {self.package} in ComfyUI's Python and restart ComfyUI, or "
                "choose 'auto'"
            )
            return "is no kernel that this ComfyUI found", advice
        if not self._computes_in(dtype):
            known = " or ".join(str(known).removeprefix("torch.") for known in self.dtypes)
            return (
                f"needs {known} and this model computes in {str(dtype).removeprefix('torch.')}",
                "choose 'auto'",
            )
        if (
            device.type == "cuda"
            and (found := torch.cuda.get_device_capability(device)) < self.capability
        ):
            wanted, found = (".".join(map(str, version)) for version in (self.capability, found))
            return (
                f"needs a card of compute capability {wanted} and this one has {found}",
                "choose 'auto'",
            )
        return "", ""

    def is_installed(self) -> bool:
        """Whether core has registered the kernel: its package is there and can be imported."""
        return attention.get_attention_function(self.registered, None) is not None

    def _runs_on(self, device: torch.device) -> bool:
        return not self.devices or device.type in self.devices

    def _computes_in(self, dtype: torch.dtype) -> bool:
        return not self.dtypes or dtype in self.dtypes


KERNELS: dict[str, Kernel | None] = {
    "auto": None,
    "pytorch": Kernel("pytorch", "torch"),
    "flash-attn": Kernel("flash", "flash-attn", ("cuda",), HALF, (8, 0)),
    # Prompt (512 tokens) and sound (157 or 314) are a few percent of the work, which 8 bits would
    # blur for no gain.
    "sage": Kernel("sage", "sageattention", ("cuda",), HALF, fewest_tokens=1024),
    "xformers": Kernel("xformers", "xformers", ("cuda",), (*HALF, torch.float32)),
    "sage3": Kernel("sage3", "sageattn3", ("cuda",), HALF, (10, 0), fewest_tokens=1024),
    "int8": Kernel(
        "comfy_kitchen_int8",
        "comfy-kitchen, of a ComfyUI that has it (0.33 or later),",
        ("cuda",),
        HALF,
        fewest_tokens=1024,
    ),
}


@dataclass(frozen=True)
class Override:
    """What core calls in place of its own attention function."""

    kernel: Kernel
    attend: Callable[..., Tensor]
    replaced: Callable[..., Tensor] | None

    def __call__(
        self, own: Callable[..., Tensor], query: Tensor, key: Tensor, *args, **kwargs
    ) -> Tensor:
        """Attend with the kernel; where it is not for this call, with what another node had chosen
        before, or else with core's own function.
        """
        if self.kernel.takes(query, key):
            return self.attend(query, key, *args, **kwargs)
        if self.replaced is not None:
            return self.replaced(own, query, key, *args, **kwargs)
        return own(query, key, *args, **kwargs)


def choose_attention(model, name: str) -> tuple[object, str]:
    """Return a copy of a MODEL that attends with the named kernel, and in words what runs and what
    there is.

    'auto' takes back an earlier choice. A kernel that cannot run is warned of, and core's own
    choice stays.
    Raises ValueError if the model is no Ovi or the name is none of KERNELS.
    """
    kernel = choose("kernel", name, KERNELS)
    diffusion_model(model)
    model = model.clone()
    options = model.model_options["transformer_options"]
    _take_back(options)
    used, warning = _own_choice(options), ""
    if kernel is not None:
        dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()
        obstacle, advice = kernel.find_obstacle(model.load_device, dtype)
        if obstacle:
            warning = f"Attention '{name}' {obstacle}, so {used} runs; {advice}."
            log.warning(warning)
        else:
            attend = attention.get_attention_function(kernel.registered)
            options[OVERRIDE] = Override(kernel, attend, options.get(OVERRIDE))
            used = f"'{name}'"
    report = f"Attention: {used}. {_list_kernels()}"
    log.info(report)
    return model, f"{warning}\n{report}".lstrip()


def _take_back(options: dict) -> None:
    """Remove an override of this module; one that it had replaced comes back."""
    override = options.pop(OVERRIDE, None)
    original = override.replaced if isinstance(override, Override) else override
    if original is not None:
        options[OVERRIDE] = original


def _own_choice(options: dict) -> str:
    """Say what runs with transformer options without an override of this module."""
    if OVERRIDE in options:
        return "the choice of another node"
    chosen = attention.optimized_attention.__name__.removeprefix("attention_")
    return f"ComfyUI's own choice ({chosen})"


def _list_kernels() -> str:
    """Say which kernels core has found."""
    kernels = {name: kernel for name, kernel in KERNELS.items() if kernel is not None}
    found = [name for name, kernel in kernels.items() if kernel.is_installed()]
    missing = [name for name in kernels if name not in found]
    return f"Installed: {', '.join(found)}. Not installed: {', '.join(missing) or 'none'}."
