"""A LoRA in training: its gradient, its files, what a step depends on, and how it goes on."""

import dataclasses

import comfy.sd
import layout_writers as write
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfyui_ovi.ovi_model.load import checkpoint, diffusion_model
from comfyui_ovi.ovi_model.network import differentiable, model
from comfyui_ovi.ovi_model.train import clips, error, lora, state, trainer
from goldens import relative_error
from safetensors.torch import load_file
from small_weights import OviSizes, ovi_weights
from weights import seeded

SIZES = OviSizes(dim=128, ffn_dim=160, layers=2)
CPU = torch.device("cpu")
# What the video and the audio tower read in place of a caption.
WITHOUT = [[torch.full((1, 1, SIZES.text_dim), x) for x in numbers] for numbers in ((7, 8), (7, 9))]
RECIPE = trainer.Recipe(rank=4, steps=4, learning_rate=1e-2, batch_size=2)


def clip(number, frames=2, dropout=0.0, first_frame=0.0):
    """A clip of random numbers with a caption of its own length."""
    steps = {2: 5, 3: 10}[frames]
    text = seeded(f"caption {number}", (1, 3 + number % 2, SIZES.text_dim))
    return clips.Clip(
        seeded(f"video {number}", (48, frames, 2, 2)),
        seeded(f"audio {number}", (20, steps)),
        (text, text),
        tuple(zip(WITHOUT[0], WITHOUT[1], strict=True)) if dropout else (),
        dropout,
        first_frame,
    )


CLIPS = [clip(number) for number in range(3)]


@pytest.fixture(scope="module")
def weights():
    return ovi_weights(SIZES, torch.float32, seed=5)


@pytest.fixture(scope="module")
def loaded(weights, tmp_path_factory):
    """A MODEL as ComfyUI loads it, in inference mode."""
    folder = tmp_path_factory.mktemp("weights")
    files, _ = write.fused(weights, folder / "ovi", torch.float32)
    with torch.inference_mode():
        return diffusion_model.load_model(str(files[0]), None, "default")


@pytest.fixture(scope="module")
def plain(weights):
    """The same network in plain torch."""
    own = {key: x.clone() for key, x in checkpoint.convert_keys(weights).items()}
    network = model.OviModel(*checkpoint.read_config(own), operations=torch.nn)
    network.load_state_dict(own)
    return network.requires_grad_(False)


def shaken(network, parts="all"):
    """A LoRA whose every weight is random."""
    made = lora.Lora(network, parts, 4, seed=0)
    for name, weight in made.named_weights():
        weight.data = 0.1 * seeded(name, weight.shape)
    return made


def error_of(network):
    errors = error.mean_errors(
        network, CLIPS, torch.tensor([0.3, 0.9, 0.6]), torch.Generator().manual_seed(3), CPU,
        torch.float32,
    )  # fmt: skip
    return trainer.weighed(*errors, sound_weight=0.5)


def own_gradient(patcher, **how):
    """Error and gradient as they are taken in training."""
    network = patcher.model.diffusion_model
    with torch.inference_mode(False), torch.enable_grad():
        made = shaken(network)
        with differentiable.differentiable(network, made.by_layer(), **how):
            loss = error_of(network)
            loss.backward()
    return loss, {name: weight.grad for name, weight in made.named_weights()}


def plain_gradient(network):
    """The same by torch alone, of weights with the LoRA added to them."""
    made = shaken(network)
    weights = dict(network.state_dict())
    for name, addition in zip(made.layers, made.additions, strict=True):
        product = addition.lora_up @ addition.lora_down
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + product
        if addition.diff_b is not None:
            weights[f"{name}.bias"] = weights[f"{name}.bias"] + addition.diff_b

    def changed(*args, **kwargs):
        return torch.func.functional_call(network, weights, args, kwargs)

    loss = error_of(changed)
    loss.backward()
    return loss, {name: weight.grad for name, weight in made.named_weights()}


@pytest.mark.parametrize("recompute", [True, False])
def test_error_and_gradient_are_those_of_weights_with_the_lora_added(loaded, plain, recompute):
    with torch.inference_mode():
        loaded.load(CPU)
        loss, found = own_gradient(loaded, recompute=recompute)
    wanted, expected = plain_gradient(plain)
    assert relative_error(loss.detach(), wanted.detach()) < 1e-5
    for name, gradient in expected.items():
        assert gradient.any() or name.endswith("k.diff_b") or "k_fusion.diff_b" in name, name
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


def test_the_file_is_read_by_core_as_what_was_trained(loaded):
    with torch.inference_mode():
        trained = trainer.train(loaded, CLIPS, RECIPE).lora
        network = loaded.model.diffusion_model
        within = differentiable.differentiable(network, trained.by_layer())
        with torch.inference_mode(False), torch.no_grad(), within:
            wanted = error_of(network)
        patched, _ = comfy.sd.load_lora_for_models(loaded, None, trained.export(), 1.0, 0.0)
        patched.load(CPU)
        found = error_of(patched.model.diffusion_model)
        patched.unpatch_model(CPU)
        loaded.load(CPU)
        before = error_of(loaded.model.diffusion_model)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert not torch.allclose(before, wanted, rtol=1e-3)


def test_the_model_is_as_it_was_and_the_loss_falls(loaded):
    recipe = dataclasses.replace(RECIPE, steps=12, batch_size=3)
    with torch.inference_mode():
        before = {name: x.clone() for name, x in loaded.model.state_dict().items()}
        losses = trainer.train(loaded, CLIPS, recipe).losses
    after = loaded.model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert not any("forward" in vars(layer) for layer in loaded.model.modules())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def group_of(name):
    if "_fusion." in name:
        return "fusion"
    return "audio" if "audio_model." in name else "video"


def test_parts_are_the_groups_of_the_lora_loader(plain):
    counts = {}
    for parts in lora.PARTS:
        names = [name for name in shaken(plain, parts).export() if name.endswith("alpha")]
        assert {group_of(name) for name in names} == set(lora.PARTS[parts])
        counts[parts] = len(names)
    assert counts["all"] == sum(counts[group] for group in lora.GROUPS)
    assert counts["fusion"] == 2 * 2 * SIZES.layers


def test_the_longer_way_gives_the_same_weights(loaded, tmp_path):
    """A training that is stopped after two steps, and one that is not."""
    with torch.inference_mode():
        whole = trainer.train(loaded, CLIPS, RECIPE)

        def stop(step, _loss):
            if step == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.train(loaded, CLIPS, RECIPE, tmp_path / "kept", 1, stop)
        again = trainer.train(loaded, CLIPS, RECIPE, tmp_path / "kept", 1)
    assert again.losses == whole.losses
    for name, weight in whole.lora.export().items():
        assert torch.equal(weight, again.lora.export()[name]), name
    saved = load_file(tmp_path / "kept" / state.LORA.format(4))
    assert saved.keys() == whole.lora.export().keys()


def test_another_training_is_not_taken_up(loaded, tmp_path):
    with torch.inference_mode():
        trainer.train(loaded, CLIPS, dataclasses.replace(RECIPE, steps=1), tmp_path)
        with pytest.raises(ValueError, match="rank was 4, now 2"):
            trainer.train(loaded, CLIPS, dataclasses.replace(RECIPE, rank=2), tmp_path)
        with pytest.raises(ValueError, match="the clips or their captions"):
            trainer.train(loaded, CLIPS[:2], RECIPE, tmp_path)


def test_a_damaged_state_is_named(loaded, tmp_path):
    (tmp_path / state.STATE).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"training.safetensors is damaged .* begin anew"):
        trainer.train(loaded, CLIPS, RECIPE, tmp_path)


def test_both_streams_have_one_noise_level_and_a_clean_frame_counts_nowhere():
    given = [clip(1, 3, first_frame=1.0), clip(2, 3)]
    levels = torch.tensor([0.4, 0.7])
    video, audio = error.noise(given, levels, torch.Generator().manual_seed(0))
    assert torch.equal(video.levels, torch.tensor([[0, 0.4, 0.4], [0.7, 0.7, 0.7]]))
    assert torch.equal(audio.levels[:, 0], levels)
    assert torch.equal(video.latent[0, :, 0], given[0].video[:, 0])
    mixed = given[1].audio + 0.7 * audio.velocity[1]
    assert torch.allclose(audio.latent[1], mixed, atol=1e-6)
    off = video.velocity.clone()
    off[0, :, 0] += 1
    assert video.error(off, error.SQUARES) == 0
    off[1, :, 0] += 1
    assert video.error(off, error.SQUARES) == pytest.approx(1 / 5)


def test_the_error_of_a_batch_is_the_mean_of_its_clips(plain):
    """Each with its own caption, whatever size and caption the others have."""

    def errors(some, levels):
        made = error.mean_errors(
            plain, some, torch.tensor(levels), torch.Generator().manual_seed(3), CPU, torch.float32
        )
        return torch.stack(made)

    long = clip(4, 3)
    together = errors([CLIPS[0], long], [0.3, 0.8])
    # The generator is drawn from in the order of sizes, so the first clip alone begins as before.
    alone = errors([CLIPS[0]], [0.3])
    generator = torch.Generator().manual_seed(3)
    error.noise([CLIPS[0]], torch.tensor([0.3]), generator)
    second = torch.stack(
        error.mean_errors(plain, [long], torch.tensor([0.8]), generator, CPU, torch.float32)
    )
    assert torch.allclose(together, (alone + second) / 2, rtol=1e-5)
    pair = errors(CLIPS[:2], [0.3, 0.3])
    other = dataclasses.replace(CLIPS[1], texts=CLIPS[0].texts)
    assert not torch.allclose(pair, errors([CLIPS[0], other], [0.3, 0.3]), rtol=1e-4)


def test_captions_are_left_out_as_often_as_asked_for_nothing_or_the_negatives_of_both_towers():
    some = [clip(number, dropout=0.25) for number in (0, 2)] * 400
    streams = error.noise(some, torch.full((800,), 0.5), torch.Generator().manual_seed(0))
    read = list(zip(*(stream.text[:, 0, 0].tolist() for stream in streams), strict=True))
    assert 0.1 < read.count((7, 7)) / 800 < 0.15
    assert 0.1 < read.count((8, 9)) / 800 < 0.15
    captions = {(float(its.texts[0][0, 0, 0]),) * 2 for its in some}
    assert set(read) == captions | {(7, 7), (8, 9)}


def test_every_clip_comes_once_a_round():
    drawn = [number for step in range(9) for number in trainer.draw(6, 2, step, seed=1)]
    rounds = [drawn[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(numbers) == list(range(6)) for numbers in rounds)
    assert rounds[0] != rounds[1]


def test_the_rate_rises_and_falls():
    recipe = trainer.Recipe(steps=100, learning_rate=1.0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == rates[5] == 1.0
    assert rates[-1] < 1e-3


def joint(count=1, frames=2, **more):
    audio = {2: 5, 3: 10}[frames]
    samples = [torch.rand(count, 48, frames, 2, 2), torch.rand(count, 20, audio)]
    return {"samples": NestedTensor(samples), **more}


def captions(count):
    return [[[torch.rand(1, 4, SIZES.text_dim), {}]] for _ in range(count)]


def test_clips_of_several_sizes_with_their_captions(plain):
    read = clips.read_clips([joint(2), joint(1, 3)], captions(3), plain.config)
    assert [its.video.shape[1] for its in read] == [2, 2, 3]
    assert len(clips.read_clips([joint(3)], captions(1), plain.config)) == 3
    with pytest.raises(ValueError, match="holds 2 clips and 'positive' 3 captions"):
        clips.read_clips([joint(2)], captions(3), plain.config)


def test_a_held_first_frame_is_given_and_other_masks_are_refused(plain):
    video, audio = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 5)
    video[:, :, 0] = 0
    held = joint(noise_mask=NestedTensor([video, audio]))
    (read,) = clips.read_clips([held], captions(1), plain.config)
    assert read.first_frame == 1.0
    audio[..., 2] = 0
    with pytest.raises(ValueError, match="something else than a whole first frame"):
        clips.read_clips([held], captions(1), plain.config)
