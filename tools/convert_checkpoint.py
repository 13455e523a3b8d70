"""Convert Ovi's weights: to fewer bits, to another precision, or from two files to one.

Run it with ComfyUI's own Python. INPUT is one file that holds both towers, or two with one each, in
any layout that this extension loads; for audio-vae, the VAE (v1-16.pth) and the vocoder
(best_netG.pt).

Fewer bits go to the linear layers of blocks alone. With fp8 and GGUF they save memory, and
products stay in the precision of the activations. With fp8-product, int8, int8-convrot, mxfp8 and
nvfp4 both factors are quantised where the card multiplies such numbers: that saves time too, and
rounds the activations. fp8-product cuts off activations above 448; the others scale them.
"""

import argparse
import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from find_comfyui import import_comfy, import_extension
from tensor_file import SafetensorsWriter, StateDict, is_finite, part_of
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from ovi_weights import OviWeights

FP8 = torch.float8_e4m3fn
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GGUF = ("q8_0", "q5_0", "q4_0")
# Each layer says how it is stored, and may multiply as it is stored.
PRODUCTS = ("fp8-product", "int8", "int8-convrot", "mxfp8", "nvfp4")

TARGETS = {
    "fp8": "ComfyUI's scaled fp8, for Load Diffusion Model; 12.4 GB",
    "fp8-product": "the same, to be multiplied in fp8 by GeForce 40 and later; 12.4 GB",
    "int8": "int8, one scale a layer, to be multiplied in int8; 12.4 GB",
    "int8-convrot": "int8, rotated, one scale a row; closer than int8; 12.4 GB",
    "mxfp8": "fp8 in blocks of 32, to be multiplied by GeForce 50 and later; 12.7 GB",
    "nvfp4": "4.5 bits a weight, to be multiplied by GeForce 50 and later; 7.6 GB",
    "q8_0": "GGUF with 8.5 bits a weight, for Unet Loader (GGUF); 13.1 GB",
    "q5_0": "GGUF with 5.5 bits a weight; 9.0 GB",
    "q4_0": "GGUF with 4.5 bits a weight; 7.6 GB",
    "bf16": "bfloat16, as published; 23.3 GB",
    "fp16": "float16; 23.3 GB",
    "fp32": "float32; 46.6 GB",
    "same": "one file in the precision of the input",
    "audio-vae": "the audio VAE and its vocoder as one file, for Load VAE",
}

# Makes one weight into what is stored for it, by name; also works on outlines, which have no
# numbers.
Conversion = Callable[[str, Tensor], StateDict]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        check_output(options.output, options.inputs, options.to in GGUF, options.force)
        import_comfy(options.comfyui)
        import_extension()
        convert(options.inputs, options.output, options.to)
    except (ValueError, OSError) as error:
        raise SystemExit(f"Nothing was written. {error}") from error
    except KeyboardInterrupt as interrupt:
        raise SystemExit("Stopped; nothing was written.") from interrupt
    print(f"{options.output} is written: {options.output.stat().st_size / 1e9:.2f} GB")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="--to is one of:\n"
        + "\n".join(f"  {name:12} {meaning}" for name, meaning in TARGETS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=Path,
        help="one weight file, or two, in any order",
    )
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="file to write, .safetensors or .gguf"
    )
    parser.add_argument(
        "--to", choices=TARGETS, required=True, metavar="FORMAT", help="what to write, see below"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument(
        "--comfyui",
        type=Path,
        metavar="FOLDER",
        help="ComfyUI's folder, if this extension is not installed in it and COMFYUI_PATH is not "
        "set",
    )
    options = parser.parse_intermixed_args(arguments)
    if len(options.inputs) > 2:
        parser.error(
            f"{len(options.inputs)} input files were given; one or two are needed, then the output"
        )
    return options


def check_output(output: Path, inputs: Sequence[Path], is_gguf: bool, force: bool) -> None:
    """Raise ValueError if there is something in the way of the output, or its name would mislead
    ComfyUI.
    """
    endings = (".gguf",) if is_gguf else (".safetensors", ".sft")
    if output.suffix.lower() not in endings:
        raise ValueError(
            f"{output.name} must end in {endings[0]}, for by that ComfyUI chooses how to read it."
        )
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder '{output.parent}'. Make it, or choose another.")
    if not output.exists():
        return
    if output.is_dir() or any(path.exists() and output.samefile(path) for path in inputs):
        raise ValueError(
            f"{output.name} is {'a folder' if output.is_dir() else 'an input'}. Choose another "
            "output."
        )
    if not force:
        raise ValueError(
            f"{output.name} exists already. Choose another output, or replace it with --force."
        )


def convert(inputs: Sequence[Path], output: Path, target: str) -> None:
    """Write the output; target: a name in TARGETS. Raises ValueError naming the input that cannot
    be converted.
    """
    about = {
        "format": "pt",
        "converted_from": ", ".join(path.name for path in inputs),
        "converted_to": target,
    }
    if target == "audio-vae":
        return _write_audio_vae(inputs, output, about)
    from ovi_weights import OviWeights

    weights = OviWeights(inputs)
    if weights.left_out:
        print(
            f"Left out, for Ovi has no such weights: {len(weights.left_out)}, the first "
            f"'{weights.left_out[0]}'"
        )
    if target in GGUF:
        return _write_gguf(weights, output, target, about["converted_from"])
    return _write_safetensors(weights, output, choose_conversion(weights, target), about)


def choose_conversion(weights: "OviWeights", target: str) -> Conversion:
    """Return what makes each weight into the target.

    Raises ValueError where a quantised file shall stay the same, or this Python lacks the target's
    layout.
    """
    if target == "fp8":
        return to_scaled_fp8
    if target in PRODUCTS:
        import quantised_layers

        return functools.partial(to_layers, quantise=quantised_layers.choose(target))
    if target in DTYPES:
        return functools.partial(to_dtype, dtype=DTYPES[target])
    if weights.quantised:
        raise ValueError(
            f"{weights.names}: quantised weights must be stored anew; use --to fp8 or --to bf16."
        )
    return to_same


def to_scaled_fp8(name: str, weight: Tensor) -> StateDict:
    """Linear layers of blocks in fp8 with the scale that makes their largest number fp8's largest,
    all else in bf16.
    """
    from ovi_weights import is_block_matrix
    from quantised_layers import scaled_to_fp8

    if not is_block_matrix(name, weight):
        return {name: weight.to(torch.bfloat16)}
    numbers, scale = scaled_to_fp8(weight)
    return {name: numbers, f"{name.removesuffix('.weight')}.scale_weight": scale}


def to_layers(name: str, weight: Tensor, quantise: Conversion) -> StateDict:
    """Linear layers of blocks as a layout has them, all else in bf16."""
    from ovi_weights import is_block_matrix

    if not is_block_matrix(name, weight):
        return {name: weight.to(torch.bfloat16)}
    return quantise(name.removesuffix(".weight"), weight)


def to_dtype(name: str, weight: Tensor, dtype: torch.dtype) -> StateDict:
    return {name: weight.to(dtype)}


def to_same(name: str, weight: Tensor) -> StateDict:
    return {name: weight}


def _write_safetensors(
    weights: "OviWeights", output: Path, conversion: Conversion, about: dict[str, str]
) -> None:
    mark = scaled_fp8_mark() if conversion is to_scaled_fp8 else {}
    outlines = dict(mark)
    for name, outline in weights.outlines.items():
        outlines |= conversion(name, outline)

    with (
        _finished(output, total_size(outlines)) as part,
        SafetensorsWriter(part, outlines, about) as writer,
    ):

        def write(name: str, weight: Tensor) -> None:
            for stored_name, stored in conversion(name, weight).items():
                if not is_finite(stored):
                    raise ValueError(
                        f"'{name}' has numbers too large for {stored.dtype}. Use --to bf16 or --to "
                        "fp32."
                    )
                writer.write(stored_name, stored)

        for name, tensor in mark.items():
            writer.write(name, tensor)
        _write_each(weights, write)


def scaled_fp8_mark() -> StateDict:
    """Return the tensor by which every supported ComfyUI knows a scaled fp8 file.

    Its two elements mean: multiply in the precision of the activations. With any other number
    ComfyUI would multiply
    in fp8 on cards that can, and 0.3.75 then takes 1 as the scale of activations, which cuts off
    all above 448. 'fp8_e4m3fn_fast' in the loader still asks for that. The type is that of the
    weights.
    """
    return {"scaled_fp8": torch.zeros(2).to(FP8)}


def _write_gguf(weights: "OviWeights", output: Path, kind: str, made_from: str) -> None:
    import gguf_file

    size = gguf_file.size(weights.outlines, kind)
    with (
        _finished(output, size) as part,
        gguf_file.GgufWriter(part, weights.outlines, kind, made_from) as writer,
    ):
        _write_each(weights, writer.write)


def _write_audio_vae(inputs: Sequence[Path], output: Path, about: dict[str, str]) -> None:
    from comfyui_ovi.ovi_model.load import audio_vae

    weights = audio_vae.read_audio_vae(*inputs)
    with (
        _finished(output, total_size(weights)) as part,
        SafetensorsWriter(part, weights, about) as writer,
    ):
        for name, tensor in weights.items():
            writer.write(name, tensor)


def _write_each(weights: "OviWeights", write: Callable[[str, Tensor], None]) -> None:
    """Read one weight after the other, hand each on before the next is read, and show how far it
    is.
    """
    with tqdm(total=total_size(weights.outlines), unit="B", unit_scale=True) as bar:
        for name, outline in weights.outlines.items():
            write(name, _read(weights, name))
            bar.update(outline.nbytes)


def _read(weights: "OviWeights", name: str) -> Tensor:
    weight = weights.read(name)
    if not is_finite(weight):
        raise ValueError(
            f"{weights.names}: '{name}' holds infinite or undefined numbers. Download it again."
        )
    return weight


def total_size(tensors: StateDict) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@contextmanager
def _finished(output: Path, size: int) -> Iterator[Path]:
    """Give a temporary file beside the output, which becomes the output if all goes well and else
    disappears.

    Raises ValueError unless size bytes are free there.
    """
    part = part_of(output)
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise ValueError(
            f"{output.name} needs {size / 1e9:.2f} GB; '{output.parent}' has {free / 1e9:.2f} GB "
            "free."
        )
    try:
        yield part
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # stops as Ctrl-C does, and leaves nothing behind
    main()
