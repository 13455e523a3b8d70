"""The benchmarks measure what they say: sizes, the floor's work, the reference as it is written,
the table.
"""

import argparse
import sys

import clips
import find_comfyui
import floor
import forward
import holding
import pytest
import recorded_floor
import reference
import torch
import traffic
from count_traffic import COMPUTE, CountTraffic, pytorch_attention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

find_comfyui.import_extension()
CPU = torch.device("cpu")
TINY = clips.Clip(
    64,
    64,
    5,
    {"dim": 64, "ffn_dim": 96, "num_layers": 2, "text_dim": 32, "freq_dim": 16, "num_heads": 2},
)


@pytest.fixture(scope="module")
def model():
    with torch.no_grad():
        return forward.make_model(TINY.towers(), torch.float32, None, CPU)


def runner(model):
    """The forward of a model as record_floor wants it."""
    device = next(model.parameters()).device
    latents, times, text = forward.make_inputs(model.config, TINY.shapes(), torch.float32, device)
    with torch.no_grad():
        prepared = forward.prepare_run(model, latents, text)
    return lambda options: model(latents, times, **prepared, transformer_options=options)


def options(**changed):
    defaults = {
        "clip": "tiny",
        "dtype": "fp32",
        "layers": None,
        "batch": 1,
        "compile": False,
        "prompt": 9,
        "peer": None,
    }
    return argparse.Namespace(**defaults | changed)


@pytest.mark.parametrize(
    ("name", "picture", "sound"),
    [
        ("small", 2304, 79),
        ("704x704 5 s", 15004, 157),
        ("960x960 5 s", 27900, 157),
        ("960x960 10 s", 54900, 314),
    ],
)
def test_the_clips_have_the_tokens_they_are_known_for(name, picture, sound):
    clip = clips.CLIPS[name]
    video, audio = clip.towers(3)
    assert (clip.tokens, clip.shapes(2)[1]) == (picture, (2, 20, sound))
    assert (video.num_layers, video.head_dim, audio.dim) == (3, 128, video.dim)
    assert audio.patch_hidden == {1024: 2816, 3072: 8192}[video.dim]


def measured(run, mode):
    """The mode after a run inside it, without gradients."""
    with torch.no_grad(), mode:
        run()
    return mode


@pytest.mark.parametrize(("batch", "prompt"), [(1, 9), (2, 511), (1, 512), (1, 600)])
def test_the_floor_is_what_the_forward_multiplies_but_for_repeated_rows_of_the_prompt(
    batch, prompt
):
    towers, shapes, meta = TINY.towers(), TINY.shapes(batch), torch.device("meta")
    products = floor.list_floor(towers, shapes, prompt)
    on_meta = forward.make_model(towers, torch.float32, None, meta)
    latents, times, text = forward.make_inputs(towers[0], shapes, torch.float32, meta, prompt)
    with torch.no_grad():
        prepared = forward.prepare_run(on_meta, latents, text)
    whole = measured(
        lambda: on_meta(
            latents,
            times,
            **prepared,
            transformer_options={"optimized_attention_override": pytorch_attention},
        ),
        FlopCounterMode(display=False),
    )
    rows, config = min(prompt + 1, 512), towers[0]
    tokens = TINY.tokens + TINY.shapes()[1][2]
    # Attention of every query to keys that repeat the last row.
    repeated = 4 * batch * tokens * (512 - rows) * config.dim * config.num_layers
    assert sum(its.flop for its in products) == whole.get_total_flops() - repeated


def test_the_floor_runs_what_it_lists_and_moves_the_bytes_it_states():
    products = floor.list_floor(TINY.towers(), TINY.shapes(2), 9)
    runs = floor.Floor(products, torch.float32, torch.device("meta"))
    flop, traffic = (
        measured(runs, mode) for mode in (FlopCounterMode(display=False), CountTraffic("meta"))
    )
    moved, launches = floor.by_kind(products, 4)
    assert flop.get_total_flops() == sum(its.flop for its in products)
    assert (traffic.moved, traffic.launches) == (moved, launches)
    assert floor.count_bytes(products, 4) == moved.total()
    weights = sum(floor.count_numbers(its)[1] for its in products)
    assert floor.count_bytes(products, 2, 1) == moved.total() / 2 - weights


def test_the_floor_reads_each_weight_of_the_model_once(model):
    products = floor.list_floor(TINY.towers(), TINY.shapes(), 9)
    runs = floor.Floor(products, torch.float32, CPU, model.parameters())
    own = {weight.data_ptr() for weight in model.parameters()}
    read = [
        tensor.data_ptr()
        for product, (_, tensors) in zip(products, runs.calls, strict=True)
        for tensor in tensors[len(product.activations) :]
    ]
    assert set(read) <= own
    assert len(set(read)) == len(read)


def test_the_floor_at_full_size():
    clip = clips.CLIPS["960x960 5 s"]
    products = floor.list_floor(clip.towers(), clip.shapes(), 128)
    _, launches = floor.by_kind(products, 2)
    assert launches == {"matmul": 729, "convolution": 4, "attention": 180}


def test_the_recorded_floor_multiplies_as_much_as_the_model_and_does_nothing_else():
    on_meta = forward.make_model(TINY.towers(), torch.float32, None, torch.device("meta"))
    run = runner(on_meta)
    with torch.no_grad():
        recorded = recorded_floor.record_floor(on_meta, run)

    def whole():
        return run({"optimized_attention_override": pytorch_attention})

    one, other = (measured(each, FlopCounterMode(display=False)) for each in (recorded, whole))
    assert one.get_flop_counts()["Global"] == other.get_flop_counts()["Global"]
    assert len(one.get_flop_counts()["Global"]) == 3  # addmm, convolution, bmm
    one, other = (measured(each, CountTraffic("meta")) for each in (recorded, whole))
    assert one.moved == {kind: size for kind, size in other.moved.items() if kind in COMPUTE}
    assert one.launches == {
        kind: launches for kind, launches in other.launches.items() if kind in COMPUTE
    }


def test_the_recorded_floor_multiplies_the_models_own_weights_and_shares_its_buffers(model):
    with torch.no_grad():
        recorded = recorded_floor.record_floor(model, runner(model))
    given = {
        tensor.data_ptr()
        for _, args, _ in recorded.calls
        for tensor in args
        if isinstance(tensor, torch.Tensor)
    }
    matrices = {
        weight.data_ptr()
        for weight in model.parameters()
        if weight.ndim > 1 and weight.shape[0] > 1
    }
    # All but the prompt's embedding, which is made once a run.
    embeddings = (tower.text_embedding for tower in (model, model.audio_model))
    matrices -= {layer[place].weight.data_ptr() for layer in embeddings for place in (0, 2)}
    assert matrices <= given
    assert len(recorded.buffers) < len(recorded.calls) / 2
    assert all(buffer.isfinite().all() for buffer in recorded.buffers.values())


@pytest.mark.parametrize(("dtype", "batch"), [("fp32", 1), ("bf16", 2), ("fp8", 1)])
def test_everything_takes_turns_and_the_table_says_how_long(dtype, batch, monkeypatch, capsys):
    monkeypatch.setitem(forward.CLIPS, "tiny", TINY)
    with torch.inference_mode():
        timed = forward.contenders(options(dtype=dtype, batch=batch), CPU)
        for contender in timed * 2:
            contender.take_turn(CPU)
        assert all(part.isfinite().all() for part in timed[0].run())
    forward.print_table(timed, CPU)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["| ours", "| floor", "| recorded floor"]
    assert (rows[1][2], rows[1][3], rows[1][4]) == ("1.000", "not measured", "not measured |")


def test_a_ratio_is_the_median_of_the_ratios_within_a_turn():
    one, other = (
        forward.Contender("one", list, [1.0, 4.0, 9.0]),
        forward.Contender("other", list, [1.0, 2.0, 3.0]),
    )
    assert forward.ratio(one, other) == "2.000"


def test_outputs_that_differ_end_the_comparison():
    ours = [torch.ones(1, 48, 1, 2, 2), torch.ones(1, 20, 3)]
    theirs = [[torch.ones(48, 1, 2, 2)], [torch.ones(3, 20)]]
    assert forward.check_outputs(ours, theirs, torch.float32) == [0, 0]
    theirs[1][0][0] *= 1.01
    with pytest.raises(
        SystemExit, match=r"differs from the reference's by 5.8e-03 of its size, more than 1e-04"
    ):
        forward.check_outputs(ours, theirs, torch.float32)
    assert forward.check_outputs(ours, theirs, torch.bfloat16)[1] > 0


MODEL = """
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from .attention import flash_attention
class WanModel(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, **config):
        super().__init__()
        self.config, self.scale = config, torch.nn.Parameter(torch.ones(1))
        self.patch_size = config["patch_size"]
"""
ATTENTION = """
import torch
try:
    import flash_attn_interface
except ModuleNotFoundError:
    import flash_attn
def flash_attention(q, k):
    assert q.device.type == 'cuda' and q.dtype == torch.bfloat16
    longest = {"max_seqlen_q": len(q), "max_seqlen_k": len(k)}
    return flash_attn.flash_attn_varlen_func(q=q, k=k, v=k, **longest, causal=False)
"""
FUSION = """
import torch
from ovi.modules.model import WanModel, flash_attention
class FusionModel(torch.nn.Module):
    def __init__(self, video, audio):
        super().__init__()
        self.video_model, self.audio_model = WanModel(**video), WanModel(**audio)
    def forward(self, vid, audio, t, vid_context, audio_context, vid_seq_len, audio_seq_len):
        kind = torch.pow(vid_context[0], 2).dtype
        return [x.bfloat16() for x in vid], audio, vid_seq_len, audio_seq_len, kind
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder laid out and imported as the reference is."""
    for name, text in {
        "modules/attention": ATTENTION,
        "modules/model": MODEL,
        "modules/fusion": FUSION,
    }.items():
        (tmp_path / "ovi" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ovi" / f"{name}.py").write_text(text)
    (tmp_path / "ovi/distributed_comms").mkdir()
    for name in ("communications", "parallel_states"):
        (tmp_path / f"ovi/distributed_comms/{name}.py").write_text("")
    for name in (*reference.PACKAGES, *reference.MODULES):
        monkeypatch.setitem(sys.modules, name, None)
    return tmp_path


def test_the_reference_loads_without_what_it_needs_and_is_not_written(checkout):
    before = sorted(checkout.rglob("*"))
    stand_ins = set(reference.stand_ins()) & set(sys.modules)
    model = reference.build(reference.load(checkout, torch.bfloat16), *TINY.towers())
    assert sorted(checkout.rglob("*")) == before
    assert set(reference.stand_ins()) & set(sys.modules) == stand_ins
    assert (model.video_model.config["patch_size"], model.audio_model.config["dim"]) == (
        (1, 2, 2),
        64,
    )
    assert model.video_model.scale.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_reference_computes_in_the_precision_asked_for(checkout, dtype):
    model = reference.build(reference.load(checkout, dtype), *TINY.towers())
    latents = [torch.zeros(shape, device="meta", dtype=dtype) for shape in TINY.shapes(2)]
    text = torch.zeros(2, 4, 8, device="meta", dtype=dtype)
    pictures, sounds, tokens, steps, squared = reference.run(model, latents, torch.zeros(2), text)
    assert (len(pictures), pictures[0].dtype, sounds[0].shape) == (
        2,
        dtype,
        (TINY.shapes()[1][2], 20),
    )
    assert (tokens, steps) == (TINY.tokens, TINY.shapes()[1][2])
    assert squared == torch.float32  # as autocast does on a card


def test_the_reference_attends_clip_by_clip(checkout):
    reference.load(checkout, torch.float32)
    query, key = torch.randn(10, 2, 8), torch.randn(6, 2, 8)
    found = reference.attend(query, key, key, max_seqlen_q=5, max_seqlen_k=3, causal=False)
    scores = torch.einsum("blhd,bmhd->bhlm", query.view(2, 5, 2, 8), key.view(2, 3, 2, 8)) / 8**0.5
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), key.view(2, 3, 2, 8)).flatten(
        0, 1
    )
    torch.testing.assert_close(found, expected)
    one = sys.modules["ovi.modules.attention"].flash_attention(query, key)
    torch.testing.assert_close(
        one, reference.attend(query, key, key, max_seqlen_q=10, max_seqlen_k=6)
    )


def test_a_folder_without_a_checkout_is_refused(tmp_path):
    with pytest.raises(
        SystemExit,
        match=r"holds no ovi/modules/fusion\.py: give --reference the folder of a checkout",
    ):
        reference.load(tmp_path, torch.float32)


def test_the_table_of_traffic_sums_up_what_is_not_multiplying(capsys):
    count = CountTraffic("cpu")
    x = torch.zeros(1000, 1000)
    with torch.no_grad(), count:
        nn.functional.gelu(x @ x)
    counted = traffic.Counted.of(count)
    traffic.print_table("tiny", 1, 9, {"ours": counted, "other": counted})
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert lines[-4] == ["| **elementwise**", "0.0", "1", "0.0", "1 |"]
    assert lines[-1] == ["| ours / this", "1.000", "1.000", "1.000", "1.000 |"]
    sums = {name: numbers for name, *numbers in traffic.rows([counted])}
    assert sums["**elementwise**"] == [(0.008, 1)]
    assert sums["**multiplying**"] == [(0.012, 1)]
    assert sums["**all**"] == [(0.02, 2)]


@pytest.mark.parametrize(("size", "ratio"), [("704 x 704", 3.5), ("960 x 960", 3.8)])
def test_a_gradient_costs_what_was_counted_of_real_ones(size, ratio):
    """As web/docs/OviSteer.md and the miniature's results say, by count of two real blocks."""
    clip = holding.CLIPS[size]
    products = floor.list_floor(clip.towers(), clip.shapes())
    plain = sum(product.flop for product in products)
    assert holding.gradient_flop(products) / plain == pytest.approx(ratio, abs=0.06)


def test_steps_are_steered_as_the_node_steers_them():
    assert [holding.steered_steps(20, few) for few in (0, 4)] == [16, 4]


def test_the_page_on_speed_has_the_table_that_is_printed():
    page = (holding.REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")
    for size in ("704 x 704", "960 x 960"):
        for row in holding.rows(size, holding.CLIPS[size], 50):
            numbers = row.strip("| ").split(" | ")[2:]
            written = [*numbers[:4], *(f"{time} s" for time in numbers[4:])]
            assert f"| {' | '.join(written)} |" in page
