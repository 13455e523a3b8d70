"""A loader of GGUF files that stands in for the public one: packed weights, given to core with
operations of its own.

What counts is what such loaders have in common: tensors of bytes that say another shape than they
have, layers that make plain weights of them when they are used, and core's own entry for state
dicts.
"""

import comfy.ops
import comfy.sd
import folder_paths
import gguf
import torch
from torch import Tensor

PLAIN = {gguf.GGMLQuantizationType.F32: torch.float32, gguf.GGMLQuantizationType.F16: torch.float16}


class PackedWeight(Tensor):
    """Bytes [rows, bytes of a row] that stand for a weight of another shape."""

    kind: gguf.GGMLQuantizationType
    stands_for: torch.Size

    @staticmethod
    def of(data: Tensor, kind: gguf.GGMLQuantizationType, stands_for: torch.Size) -> "PackedWeight":
        packed = data.as_subclass(PackedWeight)
        packed.kind, packed.stands_for = kind, stands_for
        return packed

    @property
    def shape(self) -> torch.Size:
        return self.stands_for if hasattr(self, "stands_for") else super().shape

    def unpack(self) -> Tensor:
        """Return the weight in float32."""
        return torch.from_numpy(gguf.quants.dequantize(self.as_subclass(Tensor).numpy(), self.kind))


class UnpackingOperations(comfy.ops.manual_cast):
    """Core's layers, whose linear ones unpack their weights each time."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            if isinstance(state_dict[f"{prefix}weight"], PackedWeight):
                self.packed = state_dict.pop(f"{prefix}weight")
                self.bias = torch.nn.Parameter(state_dict.pop(f"{prefix}bias"), requires_grad=False)
                # What its weight says of itself is all that others may ask.
                self.weight = torch.nn.Parameter(
                    self.packed.as_subclass(Tensor), requires_grad=False
                )
            else:
                super()._load_from_state_dict(state_dict, prefix, *args)

        def forward(self, x):
            if not hasattr(self, "packed"):
                return super().forward(x)
            return torch.nn.functional.linear(
                x, self.packed.unpack().to(x.dtype), self.bias.to(x.dtype)
            )


def read_gguf(path: str) -> dict[str, Tensor]:
    """Return plain weights, and PackedWeight for those of fewer bits."""
    reader = gguf.GGUFReader(path)
    weights = {}
    for tensor in reader.tensors:
        field = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
        shape = field.contents() if field else [int(size) for size in reversed(tensor.shape)]
        data = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type in PLAIN:
            weights[tensor.name] = data.view(PLAIN[tensor.tensor_type]).reshape(shape)
        else:
            weights[tensor.name] = PackedWeight.of(data, tensor.tensor_type, torch.Size(shape))
    return weights


class LoadGGUF:
    """Node that loads a GGUF file of models/diffusion_models."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"unet_name": ("STRING", {})}})  # noqa: ARG005
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, unet_name):
        folder_paths.folder_names_and_paths["gguf"] = (
            folder_paths.get_folder_paths("diffusion_models"),
            {".gguf"},
        )
        path = folder_paths.get_full_path_or_raise("gguf", unet_name)
        options = {"custom_operations": UnpackingOperations}
        return (comfy.sd.load_diffusion_model_state_dict(read_gguf(path), model_options=options),)
