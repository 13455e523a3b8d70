"""Core's Wan 2.2 decoder with its layers replaced makes the frames of its own, moves half the bytes
between convolutions, and is left alone where it is not the decoder known.
"""

import pytest
import small_weights
import torch
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from comfy.ldm.wan import vae as wan_vae
from comfy.ldm.wan import vae2_2
from comfyui_ovi.ovi_model.decode import lean_layers
from count_traffic import CountTraffic

CONFIG = {"z_dim": 48, "temperal_downsample": [False, True, True]}
ORDERS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.fixture(scope="module")
def model():
    """A narrow Wan 2.2 VAE of random weights whose decoder's output spreads by a quarter."""
    made = vae2_2.WanVAE(dim=8, dec_dim=8, **CONFIG).requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in made.state_dict().items()}
    made.load_state_dict(small_weights.random_weights(shapes, seed=5))
    head = made.decoder.head[-1]
    spread = made.decode(latent(2, 4, 4)).std()
    head.weight /= 4 * spread
    head.bias /= 4 * spread
    return made


def latent(frames, height, width, batch=1):
    generator = torch.Generator().manual_seed(frames * height + width)
    return torch.randn(batch, 48, frames, height, width, generator=generator)


@pytest.fixture
def again():
    """Try anew whether the layers agree with core's, now and when the test is over."""
    lean_layers.agrees_with_core.cache_clear()
    yield
    lean_layers.agrees_with_core.cache_clear()


@torch.no_grad()
def decode_leanly(model, x):
    with lean_layers.lean_layers(model.decoder):
        return model.decode(x)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 3, 5), (4, 3, 2), (3, 1, 1)])
def test_frames_are_core_s(model, monkeypatch, order, shape):
    monkeypatch.setattr(lean_layers, "memory_order", lambda _: order)
    expected = model.decode(latent(*shape))
    made = decode_leanly(model, latent(*shape))
    assert made.std() > 0.1
    # A frame is half of what the decoder makes.
    torch.testing.assert_close(made / 2, expected / 2, rtol=0, atol=1e-6)


def test_clips_of_a_batch_do_not_mix(model):
    pair = latent(3, 2, 3, batch=2)
    made = decode_leanly(model, pair)
    torch.testing.assert_close(made, model.decode(pair), rtol=0, atol=2e-6)


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_normalisation_is_core_s(monkeypatch, is_fused):
    """Also where there is nothing to normalise."""
    monkeypatch.setattr(lean_layers, "fuses_rms_norm", lambda _: is_fused)
    norm = wan_vae.RMS_norm(6, images=False).requires_grad_(False)
    norm.gamma.normal_()
    x = torch.randn(2, 6, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    x[:, :, 1] = 0
    x[:, :, 2] *= 1e-6
    torch.testing.assert_close(lean_layers.normalise(norm, x), norm(x), rtol=1e-6, atol=1e-7)


def test_half_precision_is_as_near_to_the_truth_as_core_s(model):
    x = latent(3, 3, 4)
    truth = model.decode(x)
    half = vae2_2.WanVAE(dim=8, dec_dim=8, **CONFIG).requires_grad_(False)
    half.load_state_dict(model.state_dict())
    half.bfloat16()
    ours, theirs = (
        (made.float() - truth).square().mean().sqrt()
        for made in (decode_leanly(half, x.bfloat16()), half.decode(x.bfloat16()))
    )
    assert ours < 1.2 * theirs < 0.1


def count(model, x, is_lean):
    counted = CountTraffic("meta")
    decode = decode_leanly if is_lean else model.decode.__func__
    with torch.no_grad(), counted.by_part(model), counted:
        decode(model, x)
    return counted


def test_half_of_what_lies_between_convolutions_is_moved():
    with torch.device("meta"):
        wide = vae2_2.WanVAE(dim=8, dec_dim=32, **CONFIG).requires_grad_(False).bfloat16()
        x = torch.zeros(1, 48, 5, 8, 8, dtype=torch.bfloat16)
    wide.decoder.middle[1].optimized_attention = pytorch_attention
    assert lean_layers.is_lean(wide.decoder)  # tried before it is counted
    ours, theirs = (count(wide, x, is_lean) for is_lean in (True, False))
    assert ours.elementwise < 0.5 * theirs.elementwise
    assert ours.moved["copy"] < 0.6 * theirs.moved["copy"]
    assert ours.moved["convolution"] <= 1.01 * theirs.moved["convolution"]


def test_core_s_layers_come_back(model):
    x = latent(1, 2, 2)

    def fail(*_):
        raise RuntimeError("no memory left")

    hook = model.decoder.upsamples[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        decode_leanly(model, x)
    hook.remove()
    assert not any("forward" in vars(layer) for layer in model.modules())
    assert {layer.padding for layer in model.modules() if type(layer) is wan_vae.CausalConv3d} == {
        layer.padding
        for layer in vae2_2.WanVAE(dim=8, dec_dim=8, **CONFIG).modules()
        if type(layer) is wan_vae.CausalConv3d
    }


def test_gradients_still_pass(model):
    x = latent(2, 2, 2).requires_grad_()
    with lean_layers.lean_layers(model.decoder):
        model.decode(x).sum().backward()
    assert x.grad.any()


def test_what_somebody_else_replaced_stays(model, monkeypatch):
    block = model.decoder.middle[0]
    monkeypatch.setattr(block, "forward", lambda x, *_: torch.zeros_like(x))
    monkeypatch.setattr(lean_layers, "memory_order", lambda _: torch.contiguous_format)
    x = latent(2, 2, 2)
    torch.testing.assert_close(decode_leanly(model, x), model.decode(x), rtol=0, atol=2e-6)


@pytest.mark.usefixtures("again")
def test_a_core_that_computes_otherwise_is_left_as_it_is(model, monkeypatch, caplog):
    original = vae2_2.ResidualBlock.forward
    monkeypatch.setattr(
        vae2_2.ResidualBlock, "forward", lambda block, x, *cache: 2 * original(block, x, *cache)
    )
    x = latent(2, 2, 2)
    with caplog.at_level("INFO"):
        assert torch.equal(decode_leanly(model, x), model.decode(x))
    assert "Wan 2.2 decoder is newer than this extension" in caplog.text


@pytest.mark.usefixtures("again")
def test_a_core_that_calls_otherwise_is_left_as_it_is(model, monkeypatch):
    """Its caches are no list any more."""
    monkeypatch.setattr(
        vae2_2.ResidualBlock, "forward", lambda block, x, **_caches: block.residual(x)
    )
    assert not lean_layers.is_lean(model.decoder)


def test_another_decoder_is_left_as_it_is():
    assert not lean_layers.is_lean(torch.nn.Sequential(wan_vae.RMS_norm(4)))
