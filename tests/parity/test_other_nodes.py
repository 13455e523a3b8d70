"""What core's nodes for other models change inside the twin DiT: the same as in a forward written
by hand, to 1e-5.
"""

import pytest
import torch
from goldens import load, relative_error, small_configs, small_model, small_weights
from plain_forward import Changes, PlainOvi

TOLERANCE = 1e-5
TENSORS, _ = load("fusion_t32_t2av")
LATENTS = [TENSORS["video"][None].repeat(2, 1, 1, 1, 1), TENSORS["audio"].mT[None].repeat(2, 1, 1)]
LATENTS[0][1] += 0.5  # two samples, as positive and negative are, and not the same
TEXTS = [
    torch.cat([TENSORS[name][None, :4], -0.7 * TENSORS[name][None, :4]])
    for name in ("vid_context", "audio_context")
]
TIME = TENSORS["t"].repeat(2)
BLOCK = 1  # the middle one of three
BOTH = [0, 1]


def by_hand(changes: Changes) -> list[torch.Tensor]:
    config = small_configs()[0]
    plain = PlainOvi(small_weights(), config.num_heads, config.text_length)
    return plain(LATENTS, TIME, TEXTS, changes)


def ours(options: dict) -> list[torch.Tensor]:
    options = {"cond_or_uncond": BOTH, **options}
    with torch.inference_mode():
        return small_model()(LATENTS, TIME, *TEXTS, transformer_options=options)


PLAIN = by_hand(Changes())


def in_block(change):
    """Do this in the middle block alone."""
    return lambda where, x, *about: change(x, *about) if where[1] == BLOCK else x


def values_alone(where, _query, _key, value):
    return value if where[1] == BLOCK else None


def halves(where, query, key, value):
    """Another attention: the mean of values and queries."""
    return (query + value) / 2 + 0 * key if where[1] == BLOCK else None


def normalised(_where, read, *_about, scale=5.0, alpha=0.5, tau=1.5):
    """Normalised attention guidance: positive first, negative second. Source: arXiv 2505.21179."""
    positive, negative = read
    guided = positive * scale - negative * (scale - 1)
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    guided = guided * ratio.clamp(max=tau) / ratio
    return torch.stack([alpha * guided + (1 - alpha) * positive, negative])


class NAGuidance:
    """Named as core's node is: its patch of attn1's output acts on the read of the prompt."""

    @staticmethod
    def make():
        def nag(read, extra):
            return over_positive(read, extra)

        return nag


def over_positive(read, extra):
    """The same over the rows of the positive prompt, as core's node writes it."""
    half = len(read) // len(extra["cond_or_uncond"])
    positive, negative = (
        slice(half * extra["cond_or_uncond"].index(kind), None) for kind in (0, 1)
    )
    changed = normalised(None, torch.stack([read[positive][0], read[negative][0]]))
    read[positive.start : positive.start + half] = changed[:1]
    return read


def wan_patch(args):
    """A patch of self-attention in the form of core's Wan: read, query and key by head."""
    options = args["transformer_options"]
    if options["block_index"] != BLOCK:
        return args["x"]
    tokens, heads = args["q"].shape[1:3]
    assert args["k"].shape[1:3] == (tokens, heads)
    assert torch.Size(options["grid_sizes"]).numel() == tokens
    return args["x"] + 0.1 * args["q"].flatten(2) - 0.2 * args["k"].flatten(2)


def output_patch(read, extra):
    assert extra["n_heads"] * extra["dim_head"] == read.shape[2]
    return 1.5 * read if extra["block_index"] == BLOCK else read


def state_patch(args):
    doubled = args["transformer_options"]["block_index"] == BLOCK
    return 2 * args["x"] if doubled else args["x"]


def block_patch(args):
    assert args["img_offset"] == 0
    assert args["vec"].shape[-1] == args["img"].shape[-1]
    assert args["x"].ndim == {"video": 5, "audio": 3}[args["transformer_options"]["tower"]]
    return {"img": -args["img"] if args["block_index"] == BLOCK else args["img"]}


def moved(axis, positions):
    scale, shift = {"t": (1.5, 2.0), "y": (0.5, -1.0), "x": (2.0, 0.25)}[axis]
    return positions * scale + shift


ROPE = {"scale_t": 1.5, "shift_t": 2.0, "scale_y": 0.5, "shift_y": -1.0}
ROPE |= {"scale_x": 2.0, "shift_x": 0.25}
CASES = {
    "a2v_cross_attn": ({"a2v_cross_attn": False}, Changes(cut={"video"})),
    "v2a_cross_attn": ({"v2a_cross_attn": False}, Changes(cut={"audio"})),
    "modality guidance": (
        {"a2v_cross_attn": False, "v2a_cross_attn": False},
        Changes(cut={"video", "audio"}),
    ),
    "stg_self_attn_blocks": (
        {"stg_self_attn_blocks": frozenset({BLOCK, 99})},
        Changes(query_key_value=values_alone),
    ),
    "perturbed attention": (
        {"patches_replace": {"attn1": {("middle", 0): lambda _q, _k, v, _extra, _mask=None: v}}},
        Changes(query_key_value=values_alone),
    ),
    "attn1 of a block": (
        {
            "patches_replace": {
                "attn1": {("double_block", BLOCK): lambda q, k, v, _: (q + v) / 2 + 0 * k}
            }
        },
        Changes(query_key_value=halves),
    ),
    "attn2 of a block": (
        {
            "patches_replace": {
                "attn2": {("double_block", BLOCK): lambda q, k, v, _: q * (k + v).mean(1, True)}
            }
        },
        Changes(
            text_query_key_value=lambda where, q, k, v: (
                q * (k + v).mean(1, True) if where[1] == BLOCK else None
            )
        ),
    ),
    "rope_options": ({"rope_options": ROPE}, Changes(positions=moved)),
    "NAG": (
        {"patches": {"attn1_output_patch": [NAGuidance.make()]}},
        Changes(text_read=normalised),
    ),
    "NAG's formula on self-attention": (
        {"patches": {"attn1_output_patch": [over_positive]}},
        Changes(self_read=normalised),
    ),
    "attn1_patch": (
        {"patches": {"attn1_patch": [wan_patch]}},
        Changes(self_read=in_block(lambda x, q, k: x + 0.1 * q - 0.2 * k)),
    ),
    "attn1_output_patch": (
        {"patches": {"attn1_output_patch": [output_patch]}},
        Changes(self_read=in_block(lambda x, *_: 1.5 * x)),
    ),
    "attn2_output_patch": (
        {"patches": {"attn2_output_patch": [output_patch]}},
        Changes(cross_read=in_block(lambda x: 1.5 * x)),
    ),
    "attn2_patch": (
        {"patches": {"attn2_patch": [state_patch]}},
        Changes(before_ffn=in_block(lambda x: 2 * x)),
    ),
    "double_block": (
        {"patches": {"double_block": [block_patch]}},
        Changes(after_block=in_block(torch.neg)),
    ),
}


def test_without_changes_both_are_the_reference_s():
    for actual, expected in zip(ours({}), PLAIN, strict=True):
        assert relative_error(actual, expected) < TOLERANCE
    assert relative_error(PLAIN[0][0], TENSORS["pred_video"]) > 0  # another prompt than recorded


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_the_one_written_by_hand(case):
    options, changes = CASES[case]
    expected = by_hand(changes)
    for actual, wanted, plain in zip(ours(options), expected, PLAIN, strict=True):
        assert relative_error(actual, wanted) < TOLERANCE
        assert relative_error(wanted, plain) > 100 * TOLERANCE


def test_a_replaced_block_is_given_what_core_s_wan_gives_it():
    """And what a replacement changes of it acts: here the prompt, the time and the rotations."""

    def replace(args, extra):
        assert set(args) == {"img", "txt", "vec", "pe", "transformer_options"}
        changed = {name: tuple(0.5 * x for x in args[name]) for name in ("txt", "vec", "pe")}
        return extra["original_block"]({**args, **changed})

    key = ("double_block", BLOCK)
    same = ours(
        {"patches_replace": {"dit": {key: lambda args, extra: extra["original_block"](args)}}}
    )
    changed = ours({"patches_replace": {"dit": {key: replace}}})
    for plain, passed, other in zip(PLAIN, same, changed, strict=True):
        assert relative_error(passed, plain) < TOLERANCE
        assert relative_error(other, plain) > 100 * TOLERANCE


def test_patches_beside_a_skipped_block_see_the_prompts_that_run():
    seen = []

    def look(read, extra):
        seen.append((extra["block_index"], extra["cond_or_uncond"], len(read)))
        return read

    ours({"ovi_skip_layer": BLOCK, "patches": {"attn1_output_patch": [look]}})
    assert [entry for entry in seen if entry[0] == BLOCK] == [(BLOCK, [0], 1)] * 2
    assert {tuple(kinds) for index, kinds, _ in seen if index != BLOCK} == {(0, 1)}


@pytest.mark.parametrize("name", ["attn2_patch", "double_block"])
def test_what_a_patch_keeps_stays_as_it_was(name):
    kept = []

    def keep(args):
        x = args["img" if name == "double_block" else "x"]
        kept.append((x, x.clone()))
        return {"img": x} if name == "double_block" else x

    for actual, expected in zip(ours({"patches": {name: [keep]}}), PLAIN, strict=True):
        assert relative_error(actual, expected) < TOLERANCE
    assert all(torch.equal(x, then) for x, then in kept)


def test_a_patch_beside_a_skipped_block_changes_both_prompts():
    """Where a patch returns another tensor, the skipped block's result is not written over."""
    options = {"ovi_skip_layer": BLOCK, "patches": {"attn2_patch": [lambda args: args["x"] + 0]}}
    for actual, expected in zip(ours(options), ours({"ovi_skip_layer": BLOCK}), strict=True):
        assert relative_error(actual, expected) < TOLERANCE


def test_texts_and_rotations_made_before_a_run_are_those_of_every_step():
    network = small_model()
    with torch.inference_mode():
        texts = network.preprocess_text_embeds(*TEXTS)
        tables = network.prepare_rotations([x.shape for x in LATENTS], "cpu")
        given = {"is_embedded": True, "freqs_cis": tables}
        made = network(LATENTS, TIME, *texts, transformer_options={}, **given)
        assert all(torch.equal(x, y) for x, y in zip(made, ours({}), strict=True))
        options = {"rope_options": ROPE}
        moved_ones = network(LATENTS, TIME, *texts, transformer_options=options, **given)
    assert all(torch.equal(x, y) for x, y in zip(moved_ones, ours(options), strict=True))
