"""The choice of an attention kernel: what is patched, what is refused in which words, and what is
called.
"""

import logging

import pytest
import torch
from comfy.ldm.modules import attention as core
from comfyui_ovi.ovi_model.sample import attention_kernel
from comfyui_ovi.ovi_model.sample.attention_kernel import KERNELS, OVERRIDE, choose_attention
from goldens import small_patcher

CUDA = torch.device("cuda")
NEED_CUDA = ["flash-attn", "sage", "xformers", "sage3", "int8"]
OWN = f"ComfyUI's own choice ({core.optimized_attention.__name__.removeprefix('attention_')})"


@pytest.fixture
def patcher():
    return small_patcher()


@pytest.fixture
def install(monkeypatch):
    """Register one of core's functions under a kernel's name, and let the kernel run on the CPU in
    float32.

    Returns the shapes of the queries that core's split attention is called with, unless a function
    is given.
    """

    def install(name, function=None):
        calls = []

        def attend(*args, **kwargs):
            calls.append(args[0].shape)
            return core.attention_split(*args, **kwargs)

        kernel = KERNELS[name]
        monkeypatch.setitem(
            core.REGISTERED_ATTENTION_FUNCTIONS, kernel.registered, function or attend
        )
        monkeypatch.setitem(
            KERNELS, name, kernel._replace(devices=("cpu",), dtypes=(torch.float32,))
        )
        return calls

    return install


def override_of(model):
    return model.model_options["transformer_options"].get(OVERRIDE)


def run(model, tokens=4):
    """The velocities of a clip of 2 x 2 x 2 picture tokens, and of so many audio tokens."""
    draw = torch.Generator().manual_seed(0)
    video, audio, text = (
        torch.randn(shape, generator=draw)
        for shape in ((1, 48, 2, 4, 4), (1, 20, tokens), (1, 16, 32))
    )
    options = dict(model.model_options["transformer_options"])
    with torch.no_grad():
        streams = model.model.diffusion_model(
            [video, audio], torch.tensor([500.0]), text, transformer_options=options
        )
    return torch.cat([stream.flatten() for stream in streams])


def test_pytorch_gives_what_comfyui_chooses(patcher):
    model, report = choose_attention(patcher, "pytorch")
    assert report.startswith("Attention: 'pytorch'. Installed: pytorch")
    assert override_of(model).attend is core.attention_pytorch
    assert core.optimized_attention is not core.attention_pytorch
    torch.testing.assert_close(run(model), run(patcher), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_the_given_model_stays(patcher, install, name):
    if name in NEED_CUDA:
        install(name)
    before = dict(patcher.model_options["transformer_options"])
    choose_attention(patcher, name)
    assert patcher.model_options["transformer_options"] == before


def test_auto_leaves_the_model_as_it_is(patcher, caplog):
    model, report = choose_attention(patcher, "auto")
    assert (
        model.model_options["transformer_options"] == patcher.model_options["transformer_options"]
    )
    assert report == f"Attention: {OWN}. Installed: pytorch. Not installed: {', '.join(NEED_CUDA)}."
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert torch.equal(run(model), run(patcher))


def test_auto_takes_an_earlier_choice_back(patcher):
    chosen, _ = choose_attention(patcher, "pytorch")
    model, _ = choose_attention(chosen, "auto")
    assert OVERRIDE not in model.model_options["transformer_options"]
    assert override_of(chosen) is not None


def test_the_last_node_counts_and_auto_brings_back_what_another_had_chosen(patcher):
    def other(_own, *args, **kwargs):
        return core.attention_split(*args, **kwargs)

    patcher.model_options["transformer_options"][OVERRIDE] = other
    untouched, report = choose_attention(patcher, "auto")
    assert override_of(untouched) is other
    assert report.startswith("Attention: the choice of another node.")
    twice = choose_attention(choose_attention(patcher, "pytorch")[0].clone(), "pytorch")[0]
    assert override_of(twice).attend is core.attention_pytorch
    assert override_of(choose_attention(twice, "auto")[0]) is other


@pytest.mark.parametrize("name", NEED_CUDA)
def test_without_a_cuda_card_one_sentence_says_so_and_the_model_runs(patcher, caplog, name):
    model, report = choose_attention(patcher, name)
    sentence = (
        f"Attention '{name}' needs a CUDA card and this model runs on 'cpu', so {OWN} runs; choose "
        "'pytorch' or 'auto'."
    )
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
    assert warnings == [f"Ovi: {sentence}"]
    assert report.splitlines()[0] == sentence
    assert report.splitlines()[1].startswith(f"Attention: {OWN}. Installed: pytorch.")
    assert torch.equal(run(model), run(patcher))


@pytest.mark.parametrize("name", NEED_CUDA)
def test_a_package_that_is_missing_is_named(name):
    kernel = KERNELS[name]
    obstacle, advice = kernel.find_obstacle(CUDA, torch.bfloat16)
    assert obstacle == "is no kernel that this ComfyUI found"
    assert advice.startswith(f"install the package {kernel.package} in ComfyUI's Python")


@pytest.mark.parametrize(
    ("name", "dtype"), [("flash-attn", "float32"), ("sage", "float32"), ("xformers", "float64")]
)
def test_a_precision_that_a_kernel_lacks_is_named(monkeypatch, name, dtype):
    kernel = KERNELS[name]
    monkeypatch.setitem(
        core.REGISTERED_ATTENTION_FUNCTIONS, kernel.registered, core.attention_pytorch
    )
    obstacle, advice = kernel.find_obstacle(CUDA, getattr(torch, dtype))
    known = "float16 or bfloat16" + (" or float32" if name == "xformers" else "")
    assert (obstacle, advice) == (
        f"needs {known} and this model computes in {dtype}",
        "choose 'auto'",
    )


def test_a_card_too_old_for_a_kernel_is_named(monkeypatch):
    """The card alone is pretended."""
    monkeypatch.setitem(core.REGISTERED_ATTENTION_FUNCTIONS, "flash", core.attention_pytorch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    obstacle, _ = KERNELS["flash-attn"].find_obstacle(CUDA, torch.float16)
    assert obstacle == "needs a card of compute capability 8.0 and this one has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert KERNELS["flash-attn"].find_obstacle(CUDA, torch.float16) == ("", "")


@pytest.mark.parametrize("name", ["flash-attn", "xformers"])
def test_an_installed_kernel_is_called_for_all_attention(patcher, install, name, caplog):
    calls = install(name)
    model, report = choose_attention(patcher, name)
    assert report.startswith(f"Attention: '{name}'. Installed: pytorch, {name}. Not installed: ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    torch.testing.assert_close(run(model.clone()), run(patcher), rtol=1e-4, atol=1e-5)
    # Three calls a tower and block: to itself, to the prompt, to the other tower.
    assert len(calls) == 6 * len(patcher.model.diffusion_model.blocks)


def test_sage_is_called_where_queries_and_keys_are_many(patcher, install):
    """Here the audio tower is the long one: it attends to itself with the kernel, once a block."""
    calls = install("sage")
    model, _ = choose_attention(patcher, "sage")
    expected = run(patcher, tokens=1024)
    actual = run(model, tokens=1024)
    assert [shape[1] for shape in calls] == [1024] * len(patcher.model.diffusion_model.blocks)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    run(model, tokens=1023)
    assert len(calls) == len(patcher.model.diffusion_model.blocks)


def test_a_call_in_another_precision_or_place_is_left_to_core(patcher, install):
    """A later node may change the precision; the kernel would fail at every call."""
    calls = install("flash-attn")
    override = override_of(choose_attention(patcher, "flash-attn")[0])
    query = torch.randn(1, 4, 32)

    def own(*args, **kwargs):
        assert kwargs == {"_inside_attn_wrapper": True}
        return "own", args[3]

    def ask(*tensors):
        return override(own, *tensors, 2, _inside_attn_wrapper=True)

    assert ask(*[query.double()] * 3) == ("own", 2)
    assert ask(*[query.to("meta")] * 3) == ("own", 2)
    assert not calls
    assert torch.is_tensor(ask(query, query, query))
    assert len(calls) == 1


def test_a_call_that_is_not_for_the_kernel_goes_to_what_another_node_had_chosen(patcher, install):
    calls, others = install("sage"), []

    def other(own, query, *args, **kwargs):
        assert kwargs["_inside_attn_wrapper"]
        others.append(query.shape)
        return own(query, *args, **kwargs)

    patcher.model_options["transformer_options"][OVERRIDE] = other
    model, _ = choose_attention(patcher, "sage")
    run(model, tokens=1024)
    blocks = len(patcher.model.diffusion_model.blocks)
    # Of six calls a block the audio tower's own, of 1024 tokens, is for the kernel.
    assert [len(calls), len(others)] == [blocks, 5 * blocks]


def test_the_precision_is_the_one_the_model_computes_in(patcher, install, monkeypatch):
    install("flash-attn")
    monkeypatch.setitem(
        KERNELS, "flash-attn", KERNELS["flash-attn"]._replace(dtypes=attention_kernel.HALF)
    )
    _, report = choose_attention(patcher, "flash-attn")
    assert "'flash-attn' needs float16 or bfloat16 and this model computes in float32" in report
    patcher.set_model_compute_dtype(torch.bfloat16)
    _, report = choose_attention(patcher, "flash-attn")
    assert report.startswith("Attention: 'flash-attn'.")


@pytest.mark.parametrize("name", ["pytorch", "xformers"])
def test_a_chosen_kernel_compiles_to_one_graph(patcher, install, name):
    if name in NEED_CUDA:
        install(name, core.attention_pytorch)
    model, _ = choose_attention(patcher, name)
    options = model.model_options["transformer_options"]

    def attend(query):
        """As a block does, with the attention that without an override would ask for the free
        memory.
        """
        return core.attention_sub_quad(query * 2, query, query, 2, transformer_options=options) + 1

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    for _ in range(2):
        query = torch.randn(1, 4, 32)
        torch.testing.assert_close(compiled(query), attend(query), rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_name_that_is_none_of_the_list_is_refused(patcher):
    with pytest.raises(
        ValueError, match="kernel is 'flash'; choose one of 'auto', 'pytorch', 'flash-attn', 'sage'"
    ):
        choose_attention(patcher, "flash")
