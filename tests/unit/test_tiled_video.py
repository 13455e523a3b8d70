"""Frames of tiles are those of the whole; tiles are as large as memory lets them, and shrink when
it runs out.
"""

import functools
import math
from contextlib import nullcontext

import comfy.model_management
import comfy.sd
import comfy.utils
import count_bytes
import pytest
import small_weights
import torch
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from comfy.ldm.wan import vae2_2
from comfyui_ovi.ovi_model.decode import clip, lean_layers, streaming, tiled_video, tiles

OUT_OF_MEMORY = comfy.model_management.OOM_EXCEPTION
CONFIG = {"z_dim": 48, "temperal_downsample": [False, True, True]}


@pytest.fixture(scope="module")
def vae():
    """ComfyUI's VAE object around its Wan 2.2 VAE, eight channels wide where the stock loader
    builds 256.
    """
    narrow = functools.partial(vae2_2.WanVAE, dim=8, dec_dim=8, **CONFIG)
    weights = small_weights.random_weights(
        {name: tuple(x.shape) for name, x in narrow().state_dict().items()}, seed=5
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae2_2, "WanVAE", lambda **_: narrow())
        built = comfy.sd.VAE(sd=weights, dtype=torch.float32)
    with torch.no_grad():
        spread = built.first_stage_model.decode(torch.randn(1, 48, 3, 8, 8)).std()
    head = built.first_stage_model.decoder.head[-1]
    head.weight.data /= 4 * spread
    head.bias.data /= 4 * spread
    return built


def moving(cells, rows, columns, batch=1):
    """A latent as smooth in space and time as that of a moving picture."""
    torch.manual_seed(cells * rows + columns)
    coarse = torch.randn(batch, 48, cells, -(-rows // 3) + 1, -(-columns // 3) + 1)
    return torch.nn.functional.interpolate(coarse, (cells, rows, columns), mode="trilinear") * 1.5


def noise_ratio(actual, expected):
    """PSNR of the worst frame in decibels."""
    return -10 * (actual - expected).square().mean((0, 2, 3, 4)).max().log10().item()


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 7, 4), (2, 1, 1)])
def test_the_whole_is_that_of_stock_decode_to_the_last_bit(vae, shape, monkeypatch):
    """With core's own layers; test_lean_layers.py compares those that replace them."""
    monkeypatch.setattr(lean_layers, "is_lean", lambda _: False)
    latent = moving(*shape)
    assert torch.equal(tiled_video.decode_whole(vae, latent), vae.decode(latent))


@pytest.fixture(scope="module")
def large(vae):
    """A latent of odd size, and its frames decoded in one piece."""
    latent = moving(2, 5, 43)
    return latent, tiled_video.decode_whole(vae, latent)


def test_tiles_are_closer_to_the_whole_than_eight_bits_tell(vae, large):
    """ComfyUI's own tiles know nothing of the rest of the picture, and fade into one another up to
    their edge.
    """
    latent, whole = large
    tiled = tiled_video.decode_tiled(vae, latent)
    with torch.inference_mode():
        stock = vae.decode_tiled(latent, tile_x=26, tile_y=26, overlap=4)
    assert whole.std() > 0.1
    assert noise_ratio(tiled, whole) > 55 > 35 > noise_ratio(stock, whole)


def test_no_line_of_a_seam_and_no_flicker(vae, large):
    latent, whole = large
    error = tiled_video.decode_tiled(vae, latent) - whole
    steps = (error[..., 1:, :] - error[..., :-1, :]).abs().mean((0, 1, 2, 4))
    assert steps.max() < 0.01 * (whole[..., 1:, :] - whole[..., :-1, :]).abs().mean()
    assert error.diff(dim=1).abs().mean() < 0.005 * whole.diff(dim=1).abs().mean()


def test_without_the_middle_of_the_whole_tiles_differ(vae, large, monkeypatch):
    latent, whole = large
    monkeypatch.setattr(tiled_video, "middle_of", lambda *_: [])
    assert noise_ratio(tiled_video.decode_tiled(vae, latent), whole) < 45


def test_with_edges_shown_tiles_differ(vae, large, monkeypatch):
    latent, whole = large
    without = noise_ratio(tiled_video.decode_tiled(vae, latent), whole)
    monkeypatch.setattr(tiles, "EDGE", 0)
    assert noise_ratio(tiled_video.decode_tiled(vae, latent), whole) < without - 8


def test_batches_and_single_frames(vae):
    latent = moving(1, 5, 33, batch=2)
    tiled = tiled_video.decode_tiled(vae, latent)
    assert tiled.shape == (2, 1, 80, 528, 3)
    for one, frames in zip(latent, tiled, strict=True):
        whole = tiled_video.decode_whole(vae, one[None])
        assert noise_ratio(frames[None], whole) > 50
    assert (tiled[0] - tiled[1]).abs().mean() > 0.01


def test_a_cut_in_time_would_show(vae):
    """Causal layers that begin anew make other frames: one for the first cell, and no memory of
    before.
    """
    latent = moving(4, 4, 4)
    whole = tiled_video.decode_whole(vae, latent)
    later = tiled_video.decode_whole(vae, latent[:, :, 2:])
    assert noise_ratio(later[:, 1:], whole[:, -4:]) < 35


def streamed_peak(model, cells, rows, columns, dtype):
    latent = torch.zeros(1, 48, cells, rows, columns, dtype=dtype, device="meta")
    with torch.no_grad(), count_bytes.CountBytes() as count:
        streaming.decode_streaming(model, latent, lambda _: None, ())
    return count.peak


@pytest.fixture(scope="module")
def released():
    """A decoder of the size the released VAE has, without weights."""
    return without_weights(256)


def without_weights(width):
    with torch.device("meta"):
        model = vae2_2.WanVAE(dim=8, dec_dim=width, **CONFIG).requires_grad_(False)
    model.decoder.middle[
        1
    ].optimized_attention = pytorch_attention  # the others ask how much of the device is free
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (20, 44)])
def test_the_memory_said_is_the_memory_counted(released, dtype, rows, columns):
    """Ten of 36 frames are said for what a convolution needs inside."""
    counted = streamed_peak(released.to(dtype), 3, rows, columns, dtype)
    said = streaming.bytes_held(released, rows * columns, rows * columns, dtype)
    assert counted < said * 27 / 36 < 1.1 * counted


def test_the_memory_said_of_core_s_own_layers_is_the_memory_counted(released, monkeypatch):
    """Ten of 44 frames are said for what a convolution needs inside; versions of ComfyUI differ by
    four.
    """
    for module in (lean_layers, streaming):
        monkeypatch.setattr(module, "is_lean", lambda _: False)
    counted = streamed_peak(released.to(torch.bfloat16), 3, 16, 16, torch.bfloat16)
    said = streaming.bytes_held(released, 256, 256, torch.bfloat16)
    assert counted < said * 35 / 44 < 1.2 * counted


def test_the_middle_of_a_large_picture_is_said_too(released):
    latent = torch.zeros(1, 48, 2, 60, 60, dtype=torch.bfloat16, device="meta")
    model = released.to(torch.bfloat16)
    with torch.no_grad(), count_bytes.CountBytes() as count:
        streaming.middle_of(model, latent, torch.device("meta"))
    kept = 3600 * 1024 * 2  # of the first step, when the second is made
    said = streaming.bytes_held(released, 1, 3600, torch.bfloat16)
    assert count.peak - kept < 1.05 * said < 1.2 * count.peak


def test_the_length_takes_no_memory(released):
    """But for the latent: 48 numbers a cell and step, twice."""
    short, long = (
        streamed_peak(released.to(torch.bfloat16), cells, 6, 6, torch.bfloat16) for cells in (3, 12)
    )
    assert long - short <= 9 * 2 * 48 * 36 * 2


def test_what_is_counted_is_held(vae):
    """On the CPU, where every tensor is real, the same operations are counted."""
    model = vae.first_stage_model
    latent = moving(3, 8, 8)
    with torch.no_grad(), count_bytes.CountBytes() as count:
        streaming.decode_streaming(model, latent, lambda _: None, ())
    assert streamed_peak(without_weights(8), 3, 8, 8, torch.float32) == pytest.approx(
        count.peak, rel=0.02
    )


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of the latents that reach the decoder, without those of the middle's pass."""
    sizes = []
    original = tiled_video.decode_streaming

    def noted(model, latent, *others):
        sizes.append(tuple(latent.shape[-2:]))
        return original(model, latent, *others)

    monkeypatch.setattr(tiled_video, "decode_streaming", noted)
    return sizes


@pytest.mark.parametrize("found", [2000, 700, 300, 1])
@pytest.mark.parametrize("in_all", [2000, 500])
def test_auto_takes_the_largest_tile_for_which_memory_is_found(
    vae, decoded, monkeypatch, found, in_all
):
    """in_all: cells for which the device has memory. found: those for which it is free once all
    else has left.
    """
    video = moving(1, 20, 33)
    needed = functools.partial(tiled_video.memory_required, vae, video.shape)
    asked = []
    reserve = comfy.model_management.extra_reserved_memory()
    weights = 1.1 * vae.model_size()
    monkeypatch.setattr(
        vae.patcher, "get_free_memory", lambda _: needed((1, found)) + reserve, raising=False
    )
    monkeypatch.setattr(
        comfy.model_management,
        "get_total_memory",
        lambda _: needed((1, in_all)) + weights + reserve,
    )
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda *_, memory_required, **__: asked.append(memory_required),
    )
    clip.TILINGS["auto"](vae, video)

    def expected(cells):
        return tiles.least_work(20, 33, lambda rows, columns: rows * columns <= cells)

    sizes = [(grid.height.tile, grid.width.tile) for grid in map(expected, (in_all, found))]
    assert set(decoded) == {sizes[1]}
    assert asked == [needed(size) for size in sizes]


def test_frames_that_stay_on_the_device_are_asked_for(vae, monkeypatch):
    """And, with tiles, what the middle layers made of the whole."""
    shape = torch.Size((2, 48, 3, 20, 33))
    sizes = (5, 5), (20, 33)
    tiled, whole = (tiled_video.memory_required(vae, shape, size) for size in sizes)
    monkeypatch.setattr(vae, "output_device", torch.device("meta"))
    tiled_left, whole_left = (tiled_video.memory_required(vae, shape, size) for size in sizes)
    frames = math.prod((2, 9, 320, 528, 3)) * 4
    middle = [
        x.nbytes
        for x in tiled_video.middle_of(
            vae.first_stage_model, moving(3, 20, 33), torch.device("cpu")
        )
    ]
    assert whole - whole_left == frames
    assert tiled - tiled_left == frames + sum(middle)


def test_a_decoder_that_changed_is_told(vae, monkeypatch):
    monkeypatch.setattr(vae.first_stage_model.decoder, "forward", lambda *_args, **_kwargs: [])
    with pytest.raises(
        RuntimeError, match=r"in a way that 'Ovi Decode' does not know.*Update.*'VAE Decode'"
    ):
        tiled_video.decode_whole(vae, moving(1, 2, 2))


def test_the_vae_s_card_is_the_current_one(vae, monkeypatch):
    entered = []

    def context(device):
        entered.append(device)
        return nullcontext()

    monkeypatch.setattr(comfy.model_management, "cuda_device_context", context, raising=False)
    tiled_video.decode_whole(vae, moving(1, 2, 2))
    assert entered == [vae.device]


def fail_above(monkeypatch, area, error):
    original = tiled_video.decode_streaming

    def failing(model, latent, *others):
        if math.prod(latent.shape[-2:]) > area:
            raise error
        return original(model, latent, *others)

    monkeypatch.setattr(tiled_video, "decode_streaming", failing)


@pytest.mark.parametrize("tiling", ["auto", "on", "off"])
def test_smaller_tiles_follow_when_memory_runs_out(vae, decoded, monkeypatch, caplog, tiling):
    video = moving(1, 25, 33)
    fail_above(monkeypatch, 300, OUT_OF_MEMORY("none left"))
    frames = clip.TILINGS[tiling](vae, video)
    assert set(decoded) == {(17, 17)}
    monkeypatch.undo()
    assert noise_ratio(frames, tiled_video.decode_whole(vae, video)) > 50
    first = "336 x 400" if tiling == "on" else "528 x 400"
    assert f"out of memory in tiles of {first} pixels; taking smaller ones" in caplog.text


def test_memory_that_never_suffices_is_told(vae, monkeypatch):
    fail_above(monkeypatch, 0, OUT_OF_MEMORY("none left"))
    message = r"even in tiles of 272 x 272 pixels, the smallest\. Close other programs.*--cpu-vae"
    with pytest.raises(MemoryError, match=message):
        tiled_video.decode_whole(vae, moving(1, 25, 25))


def test_other_errors_pass(vae, monkeypatch):
    fail_above(monkeypatch, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        tiled_video.decode_whole(vae, moving(1, 25, 25))
    assert not vae.first_stage_model.decoder._forward_hooks
    assert not vae.first_stage_model.decoder.middle[-1]._forward_hooks


@pytest.mark.parametrize(("tiling", "tiles_made"), [("off", 1), ("on", 2)])
def test_progress_by_frames_and_interrupt_between_them(vae, monkeypatch, tiling, tiles_made):
    steps = []
    video = moving(3, 5, 33)

    def hook(done, total, *_, **__):
        steps.append((done, total))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    clip.TILINGS[tiling](vae, video)
    total = 9 * tiles_made
    # Newer versions of ComfyUI leave out what follows too soon.
    assert {steps[0], steps[-1]} == {(1, total), (total, total)}
    assert set(steps) <= {
        (9 * tile + frame, total) for tile in range(tiles_made) for frame in (1, 5, 9)
    }

    def stop(done, *_, **__):
        comfy.model_management.interrupt_current_processing(done == 1)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        clip.TILINGS[tiling](vae, video)
    assert not vae.first_stage_model.decoder._forward_hooks
