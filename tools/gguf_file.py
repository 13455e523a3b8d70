"""Ovi's weights as a GGUF file that ComfyUI-GGUF reads.

Source of the rules: city96/ComfyUI-GGUF, loader.py, gguf_sd_loader, and ops.py, GGMLOps.
"""

import sys
from pathlib import Path

import torch
from ovi_weights import is_block_matrix
from tensor_file import is_finite
from torch import Tensor

try:
    import gguf
except ImportError as error:
    raise SystemExit(
        f"GGUF files need the package 'gguf': run '{sys.executable} -m pip install gguf'."
    ) from error

# Ovi's video tower has the names and sizes of Wan's; the loader takes no architecture that it does
# not know.
ARCHITECTURE = "wan"
# GGUF itself knows tensors of up to four dimensions; for others the loader reads the shape from the
# metadata.
MOST_DIMENSIONS = 4

TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_0": (gguf.GGMLQuantizationType.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def stored_type(name: str, outline: Tensor, kind: str) -> gguf.GGMLQuantizationType:
    """Choose how a tensor is stored; kind: a name in TYPES.

    Only linear layers are dequantised when used. Convolutions are not, nor norms, and modulations,
    which are no layers of core's, are copied as they are into memory of another type: those must be
    plain floats, and never bfloat16, which the loader keeps as bytes.
    """
    quantised = TYPES[kind][0]
    if outline.ndim < 2 or name.endswith("modulation"):
        return gguf.GGMLQuantizationType.F32
    if (
        is_block_matrix(name, outline)
        and outline.shape[1] % gguf.GGML_QUANT_SIZES[quantised][0] == 0
    ):
        return quantised
    return gguf.GGMLQuantizationType.F16


def size(outlines: dict[str, Tensor], kind: str) -> int:
    """Bytes of all tensors as they are stored."""
    return sum(
        _size(outline, stored_type(name, outline, kind)) for name, outline in outlines.items()
    )


def _size(outline: Tensor, stored: gguf.GGMLQuantizationType) -> int:
    numbers, length = gguf.GGML_QUANT_SIZES[stored]
    return outline.numel() // numbers * length


class GgufWriter:
    """A new GGUF file, open while the context is; tensors must be written in the order of their
    outlines.
    """

    def __init__(self, path: Path, outlines: dict[str, Tensor], kind: str, made_from: str):
        """outlines: tensors of which only shapes are read. kind: a name in TYPES. made_from: told
        in the file.
        """
        self._kind = kind
        self._writer = gguf.GGUFWriter(path, ARCHITECTURE)
        self._writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self._writer.add_file_type(TYPES[kind][1])
        self._writer.add_string("ovi.converted_from", made_from)
        for name, outline in outlines.items():
            stored = stored_type(name, outline, kind)
            if outline.ndim > MOST_DIMENSIONS:
                self._writer.add_array(f"comfy.gguf.orig_shape.{name}", list(outline.shape))
            self._writer.add_tensor_info(
                name, _folded(outline).shape, None, _size(outline, stored), stored
            )
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()

    def __enter__(self) -> "GgufWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, name: str, weight: Tensor) -> None:
        """Raises ValueError for a number too large for the type it is stored in."""
        stored = stored_type(name, weight, self._kind)
        if stored == gguf.GGMLQuantizationType.F16:
            weight = weight.to(torch.float16)
            if not is_finite(weight):
                raise ValueError(
                    f"'{name}' has numbers too large for half precision, which GGUF needs. Use "
                    "--to fp8."
                )
        else:
            weight = weight.float()
        self._writer.write_tensor_data(gguf.quants.quantize(_folded(weight).numpy(), stored))


def _folded(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > MOST_DIMENSIONS else tensor
