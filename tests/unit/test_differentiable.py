"""The gradient that passes through the twin DiT in inference mode, against one that torch takes of
the same weights in plain float32.
"""

from functools import partial

import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import layout_writers as write
import pytest
import torch
from comfyui_ovi.ovi_model.load import checkpoint, diffusion_model
from comfyui_ovi.ovi_model.network import differentiable, model
from gguf_loader import UnpackingOperations, read_gguf
from goldens import relative_error
from small_weights import OviSizes, lora_weights, ovi_weights
from weights import seeded

SIZES = OviSizes(dim=128, ffn_dim=160, layers=2)
CPU = torch.device("cpu")
VIDEO, AUDIO = seeded("steered video", (1, 48, 2, 4, 4)), seeded("steered audio", (1, 20, 6))
TIME, TEXT = torch.tensor([700.0]), seeded("steered text", (1, 5, SIZES.text_dim))
# How each layout is written, and how it is loaded.
LAYOUTS = {
    "float32": partial(write.fused, dtype=torch.float32),
    "bfloat16": partial(write.fused, dtype=torch.bfloat16),
    "plain fp8": write.plain_fp8,
    "two files": write.two_files,
    "scaled fp8": partial(write.scaled_fp8, files=1),
    "fp8 of ComfyUI 0.3.75": partial(write.listed_fp8, files=1),
    "fp8 of later ComfyUI": partial(write.marked_fp8, files=1),
    "int8 of quanto": write.quanto_int8,
    "GGUF Q8_0": partial(write.gguf, kind="q8_0"),
    "GGUF Q4_0": partial(write.gguf, kind="q4_0"),
}


@pytest.fixture(scope="module")
def released():
    return ovi_weights(SIZES, torch.float32, seed=5)


def error_of(network, video, audio):
    """A number that reads the picture's velocity, as steering does."""
    picture, _ = network([video, audio], TIME.clone(), TEXT.clone(), TEXT.clone())
    return (picture - video).square().sum()


def gradients(network, within):
    """The gradient of both latents, taken in a context."""
    with torch.inference_mode(False), torch.enable_grad(), within:
        latents = [latent.clone().requires_grad_() for latent in (VIDEO, AUDIO)]
        found = torch.autograd.grad(error_of(network, *latents), latents)
    return torch.cat([gradient.flatten() for gradient in found])


def plain_gradients(values):
    """By autograd alone, on a network of these values, float32, built outside inference mode."""
    weights = {key: x.clone() for key, x in checkpoint.convert_keys(values).items()}
    video, audio = checkpoint.read_config(weights)
    network = model.OviModel(video, audio, operations=torch.nn)
    network.load_state_dict(weights)
    return gradients(network.requires_grad_(False), torch.enable_grad())


def loaded(files, patch=None, **how):
    """A network as ComfyUI loads it: in inference mode."""
    with torch.inference_mode():
        if files[0].suffix == ".gguf":
            patcher = comfy.sd.load_diffusion_model_state_dict(
                read_gguf(str(files[0])), model_options={"custom_operations": UnpackingOperations}
            )
        else:
            audio = str(files[1]) if len(files) == 2 else None
            patcher = diffusion_model.load_model(str(files[0]), audio, "default")
        if patch is not None:
            patcher.add_patches(patch, 0.7)
        patcher.load(CPU, **how)
    return patcher.model.diffusion_model


def own(network):
    return differentiable.differentiable(network)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_that_of_plain_float32(released, tmp_path, layout):
    files, values = LAYOUTS[layout](released, tmp_path / "weights")
    network = loaded(files)
    assert relative_error(gradients(network, own(network)), plain_gradients(values)) < 1e-5


def test_without_it_torch_refuses_or_the_gradient_is_another(released, tmp_path):
    """What the module is for."""
    files, _ = write.fused(released, tmp_path / "weights", torch.float32)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        gradients(loaded(files), torch.enable_grad())


@pytest.mark.parametrize("how", [{}, {"lowvram_model_memory": 1}], ids=["patched", "lowvram"])
def test_of_a_lora_too(released, tmp_path, how):
    files, _ = write.fused(released, tmp_path / "weights", torch.float32)
    lora = lora_weights(SIZES, seed=1)
    with torch.inference_mode():
        patcher = diffusion_model.load_model(str(files[0]), None, "default")
        keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
        patch = comfy.lora.load_lora(lora, keys)
    network = loaded(files, patch, **how)
    if how:
        layers = [layer for layer in network.modules() if getattr(layer, "weight_function", [])]
        assert layers
    values = plain_lora(checkpoint.convert_keys(released), lora, 0.7)
    found = gradients(network, own(network))
    assert relative_error(found, plain_gradients(values)) < 1e-5
    assert relative_error(found, plain_gradients(released)) > 1e-3


def plain_lora(weights, lora, strength):
    """Weights with a LoRA added by hand."""
    changed = dict(weights)
    for name, up in lora.items():
        layer, end, _ = name.partition(".lora_B")
        if not end:
            continue
        down = lora[name.replace("lora_B", "lora_A")]
        (key,) = [key for key in weights if name_of(key) == layer.removeprefix("diffusion_model.")]
        changed[key] = weights[key] + strength * (up @ down).view_as(weights[key])
    return changed


def name_of(key):
    return key.removesuffix(".weight")


def test_of_weights_in_a_buffer_that_the_next_layer_uses_again(released, tmp_path, monkeypatch):
    """As core streams weights to a card; a buffer is made in inference mode."""
    files, values = write.fused(released, tmp_path / "weights", torch.bfloat16)
    network = loaded(files)
    original = comfy.ops.cast_bias_weight
    with torch.inference_mode():
        buffer = torch.zeros(max(weight.numel() for weight in network.parameters()))

    def cast(layer, *args, **kwargs):
        weight, *rest = original(layer, *args, **kwargs)
        space = buffer[: weight.numel()].view(weight.shape)
        space.copy_(weight)
        return (space, *rest)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast)
    assert relative_error(gradients(network, own(network)), plain_gradients(values)) < 1e-5


def test_values_are_those_of_a_run_without_gradients(released, tmp_path):
    files, _ = write.plain_fp8(released, tmp_path / "weights")
    network = loaded(files)
    with torch.inference_mode():
        expected = error_of(network, VIDEO, AUDIO)
    with own(network):
        actual = error_of(network, VIDEO.clone().requires_grad_(), AUDIO)
    assert relative_error(actual.detach(), expected) < 1e-6


def test_a_pair_is_computed_again_as_it_was(released, tmp_path, monkeypatch):
    """Patches look at the number of the block, which by then is that of the last one."""
    files, _ = write.fused(released, tmp_path / "weights", torch.float32)
    network = loaded(files)
    indices = []
    original = differentiable.checkpoint

    def watch(forward, hidden, inputs, options, *partner, **how):
        def run(*args):
            indices.append(options["block_index"])
            return forward(*args)

        return original(run, hidden, inputs, options, *partner, **how)

    monkeypatch.setattr(differentiable, "checkpoint", watch)
    gradients(network, own(network))
    assert indices == [0, 1, 1, 0]


def test_everything_is_put_back(released, tmp_path):
    files, _ = write.fused(released, tmp_path / "weights", torch.float32)
    network = loaded(files)
    layer = network.blocks[0].ffn[0]
    layer.forward = kept = layer.forward  # as another extension's patch
    before = [set(vars(module)) for module in network.modules()]
    with pytest.raises(KeyError), own(network):
        raise KeyError
    assert [set(vars(module)) for module in network.modules()] == before
    assert layer.forward is kept


QUANTISED = sorted(set(comfy.quant_ops.QUANT_ALGOS) - {"float8_e4m3fn"})


@pytest.mark.parametrize("kind", QUANTISED)
def test_of_every_quantised_layer_that_this_core_has(kind):
    """Against the matrix that the layer shows when it multiplies each unit vector."""
    unit = torch.eye(256, dtype=torch.bfloat16)
    try:
        layer = quantised_layer(kind)
        with torch.inference_mode():
            shown = layer(unit).float()
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"not on a processor: {error}")
    x = unit.clone().requires_grad_()
    forward = layer.forward
    made = differentiable._Layer.apply(x, layer, forward)
    (found,) = torch.autograd.grad(made, x, torch.eye(256, dtype=torch.bfloat16))
    assert relative_error(found.float(), shown.T) < 0.1


def quantised_layer(kind):
    """One of core's layers, 256 wide, quantised in this way."""
    operations = comfy.ops.mixed_precision_ops({}, torch.bfloat16)
    with torch.inference_mode():
        layer = operations.Linear(256, 256, dtype=torch.bfloat16, device="cpu")
        layout = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
        weight = seeded("quantised", (256, 256)).bfloat16()
        held = comfy.quant_ops.QuantizedTensor.from_float(weight, layout)
        layer.weight = torch.nn.Parameter(held, requires_grad=False)
        layer.bias = torch.nn.Parameter(torch.zeros(256, dtype=torch.bfloat16), requires_grad=False)
        layer.quant_format, layer.layout_type = kind, layout
    return layer
