"""The goldens are sharp: change any one term of the model's equations and a recorded forward no
longer fits.
"""

import inspect
import sys

import comfy.ops
import pytest
import torch
from comfyui_ovi.ovi_model import config
from comfyui_ovi.ovi_model.network import blocks, fused_ops, model, rope
from goldens import load, relative_error, small_configs, small_weights

TOLERANCE = 5e-6

MUTATIONS = {
    rope: [
        ("2 * (head_dim // 6)", "head_dim // 6"),
        (" * AUDIO_ROPE_SCALE", ""),
        ("device=device) + start", "device=device) + 1"),
        ("ROPE_THETA)[0]", "2 * ROPE_THETA)[0]"),
        ("angles.cos(), angles.sin()", "angles.sin(), angles.cos()"),
        ("ROPE_THETA ** (-", "2 * ROPE_THETA ** (-"),
    ],
    blocks: [
        ("rotate(rms_norm(self.norm_q, self.q(x)), rope", "rotate(self.q(x), rope"),
        ("rotate(rms_norm(self.norm_k, self.k(x)), rope", "rotate(self.k(x), rope"),
        (
            "query = rotate(rms_norm(self.norm_q, self.q(x)), rope, self.num_heads)",
            "query = rms_norm(self.norm_q, self.q(x))",
        ),
        (
            "key = rotate(rms_norm(self.norm_k, self.k(x)), rope, self.num_heads)",
            "key = rms_norm(self.norm_k, self.k(x))",
        ),
        ("return query, key, self.v(x)", "return query, key, x"),
        ("*projections, num_heads", "*projections, 1"),
        ("self.self_attn.o(read)", "read"),
        (
            "query = rms_norm(self.norm_q, self.q(x))\n        read",
            "query = self.q(x)\n        read",
        ),
        ("rms_norm(self.norm_k, self.k(text))", "self.k(text)"),
        ("self.v(text))", "text)"),
        ("hidden = self.pre_attn_norm_fusion(hidden)", "hidden = hidden"),
        ("rms_norm(self.norm_k_fusion, self.k_fusion(hidden))", "self.k_fusion(hidden)"),
        ("query = rotate(query, rope, self.num_heads)", "query = query"),
        (
            "rotate(rms_norm(self.norm_k_fusion, self.k_fusion(hidden)), rope, self.num_heads)",
            "rms_norm(self.norm_k_fusion, self.k_fusion(hidden))",
        ),
        ("read = read + also", "read = read - also"),
        ("return key, self.v_fusion(hidden)", "return key, hidden"),
        ("return self.o(read)", "return read"),
        ("self.modulation(time).unbind", "time.unbind"),
        ("time.device).unsqueeze(1) + time", "time.device).unsqueeze(1) + 0 * time"),
        ("rows[:3], rows[3:]", "rows[3:], rows[3:]"),
        ("rows[:3], rows[3:]", "rows[:3], rows[:3]"),
        ("modulated_norm(x, shift, scale", "modulated_norm(x, 0 * shift, scale"),
        ("modulated_norm(x, shift, scale", "modulated_norm(x, shift, 0 * scale"),
        ("self.cross_attn(self.norm3(x)", "self.cross_attn(x"),
        ("narrow(gelu(inner))", "narrow(inner)"),
        ("add_gated(x, narrow", "add_gated(0 * x, narrow"),
        ("add_gated(x, self.self_attn", "add_gated(0 * x, self.self_attn"),
        (
            "self.modulation(time.unsqueeze(2)).unbind",
            "self.modulation(0 * time.unsqueeze(2)).unbind",
        ),
        ("eps=config.eps", "eps=1e-3"),
    ],
    fused_ops: [
        ("_multiply_add(normed, 1 + scale", "_multiply_add(normed, scale"),
        ("_multiply_add(normed, 1 + scale, shift", "_multiply_add(normed, 1 + scale, 0 * shift"),
        ("functional.layer_norm(steps, steps.shape[-1:], eps=eps)", "steps.clone()"),
        ("gate.unsqueeze(2), steps", "1 + 0 * gate.unsqueeze(2), steps"),
        (".mul_(norm.weight)", ""),
        (".add_(norm.eps)", ".add_(1e-3)"),
        ("rsqrt_()", "sqrt_()"),
        ("x.add_(update) if", "x.sub_(update) if"),
        ('gelu_(x, approximate="tanh")', "gelu_(x)"),
        ("view_as_complex(pairs) * phases", "view_as_complex(pairs) / phases"),
        ("torch.addcmul(addend, x, factor, out=out)", "torch.mul(x, factor, out=out)"),
    ],
    model: [
        ('nn.GELU(approximate="tanh")', "nn.GELU()"),
        (
            "self.text_embedding(nn.functional.pad(context, (0, 0, 0, self.config.text_length - "
            "context.shape[1])))",
            "nn.functional.pad(self.text_embedding(context), (0, 0, 0, self.config.text_length - "
            "context.shape[1]))",
        ),
        ("nn.functional.silu(self.w1(x)) * self.w3(x)", "nn.functional.silu(self.w1(x))"),
        ("nn.functional.silu(self.w1(x)) *", "self.w1(x) *"),
        (
            "nn.SiLU(),\n            AudioPatchEmbedding",
            "nn.Identity(),\n            AudioPatchEmbedding",
        ),
        ("activate(precisely(first", "(precisely(first"),
        ("activate(embedding)", "embedding"),
        ("precisely(second, activate", "precisely(second, 0 * activate"),
        ("(p q r c)", "(c p q r)"),
        ("b d f h w -> b (f h w) d", "b d f h w -> b (w h f) d"),
        ("tuple(add(x, update)", "tuple(add(x, 0 * update)"),
        ("strict=True)][::-1] if", "strict=True)] if"),
        ("is not self and audio_context is not None", "is self and audio_context is not None"),
        ("if kind != NEGATIVE:", "if True:"),
    ],
}
CASES = [
    (module, old, new, place)
    for module, pairs in MUTATIONS.items()
    for old, new in pairs
    for place in range(max(1, inspect.getsource(module).count(old)))
]


class Mutated:
    """Copies of the model's modules with one term changed; the modules that tests and ComfyUI use
    stay as they are.
    """

    def __init__(self, changed, old: str, new: str, place: int):
        self.modules = {}
        for module in (config, fused_ops, rope, blocks, model):
            source = inspect.getsource(module)
            if module is changed:
                parts = source.split(old)
                assert len(parts) > place + 1, (
                    f"{old!r} is no longer in {module.__name__}: update the table"
                )
                source = old.join(parts[: place + 1]) + new + old.join(parts[place + 1 :])
            name = f"{module.__package__}.mutated_{module.__name__.rpartition('.')[2]}"
            for original in ("config", "fused_ops", "rope", "blocks"):
                source = source.replace(
                    f"from .{original} import", f"from .mutated_{original} import"
                )
            copy = type(sys)(name)
            copy.__package__ = module.__package__
            self.modules[name] = sys.modules[name] = copy
            exec(compile(source, name, "exec"), copy.__dict__)  # noqa: S102
        self.twin = copy.OviModel

    def close(self) -> None:
        for name in self.modules:
            del sys.modules[name]


def largest_error(twin_class) -> float:
    """Largest error over one recorded forward from an image, with a skipped layer."""
    tensors, about = load("fusion_t32_i2av_slg2")
    video, audio = small_configs()
    twin = twin_class(video, audio, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    twin.load_state_dict(small_weights(), strict=True)
    time = tensors["t"][:, None].repeat(1, tensors["video"].shape[1])
    time[:, 0] = 0
    options = {"cond_or_uncond": [1], "ovi_skip_layer": about["kwargs"]["slg_layer"]}
    texts = (tensors["vid_context"][None], tensors["audio_context"][None])
    with torch.no_grad():
        pair = twin(
            [tensors["video"][None], tensors["audio"].mT[None]],
            [time, tensors["t"]],
            *texts,
            options,
        )
    errors = (
        relative_error(pair[0][0], tensors["pred_video"]),
        relative_error(pair[1][0].mT, tensors["pred_audio"]),
    )
    return max(errors)


def test_every_norm_has_the_reference_s_epsilon():
    video, audio = small_configs()
    twin = model.OviModel(
        video, audio, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    norms = [module for module in twin.modules() if hasattr(module, "eps")]
    assert len(norms) == 2 * (3 * 8 + 1)
    assert {module.eps for module in norms} == {1e-6}


def test_the_copies_unchanged_fit():
    copies = Mutated(None, "", "", 0)
    try:
        assert largest_error(copies.twin) <= TOLERANCE
    finally:
        copies.close()


@pytest.mark.parametrize(
    ("module", "old", "new", "place"),
    CASES,
    ids=[f"{old[:30]} > {new[:30]} {place}" for _, old, new, place in CASES],
)
def test_a_changed_term_shows(module, old, new, place):
    copies = Mutated(module, old, new, place)
    try:
        assert largest_error(copies.twin) > TOLERANCE
    finally:
        copies.close()
