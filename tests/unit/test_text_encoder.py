"""umT5 files of every layout give the same embeddings as ComfyUI's own loader; wrong files say what
they are.
"""

import shutil
from types import SimpleNamespace

import comfy.sd
import pytest
import small_weights
import torch
from comfyui_ovi.ovi_model.load import text_encoder
from comfyui_ovi.ovi_model.text import encode
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

PROMPT = 'A (quiet:1.4) voice says, <S>Never, ünï 漢字.<E> Audio: rain on "tin".'
WAN_FILE = "models_t5_umt5-small-enc.pth"
BLOCK = "encoder.block.0.layer.0.SelfAttention."


def embed(clip, text=PROMPT):
    return clip.encode_from_tokens(clip.tokenize(text, disable_weights=True))


@pytest.fixture
def folder(small_files):
    return small_files / "text_encoders"


@pytest.fixture
def weights(folder):
    return load_file(folder / "umt5_small.safetensors")


@pytest.fixture
def load(tmp_path):
    """Save weights as a file and load it as a text encoder."""

    def load(weights, neighbours=()):
        path = tmp_path / "mine.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        return text_encoder.load_text_encoder(path, neighbours)

    return load


def quantise(weights, marker_length):
    """ComfyUI's scaled fp8 format: matrices in 8 bits with one scale each, and a marker."""
    scaled = {"scaled_fp8": torch.zeros(marker_length, dtype=torch.float8_e4m3fn)}
    for name, tensor in weights.items():
        scaled[name] = tensor
        if name.endswith(
            (
                "q.weight",
                "k.weight",
                "v.weight",
                "o.weight",
                "wi_0.weight",
                "wi_1.weight",
                "wo.weight",
            )
        ):
            scale = tensor.float().abs().max() / 448
            scaled[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
    return scaled


def test_both_layouts_give_the_same_bits(folder):
    own = text_encoder.load_text_encoder(folder / "umt5_small.safetensors")
    wan = text_encoder.load_text_encoder(
        folder / WAN_FILE, [folder / WAN_FILE, folder / "umt5_small.safetensors"]
    )
    assert torch.equal(embed(own), embed(wan))


def test_embeddings_are_padded_to_512_rows_and_zero_past_the_text(folder):
    clip = text_encoder.load_text_encoder(folder / "umt5_small.safetensors")
    tokens = clip.tokenize(PROMPT, disable_weights=True)["umt5xxl"][0]
    length = [token for token, *_ in tokens].index(1) + 1
    embedding = embed(clip)
    assert embedding.shape == (1, 512, 64)
    assert embedding[0, :length].abs().amin(dim=0).max() > 0
    assert not embedding[0, length:].any()


def test_equals_the_stock_loader(tmp_path):
    """ComfyUI's own loader knows umt5-xxl by 24 blocks and one width, 4096 or (later) 10240; the
    rest can be small.
    """
    for d_model, d_ff in ((4096, 16), (16, 10240)):
        sizes = small_weights.TextSizes(
            d_model=d_model, d_ff=d_ff, d_kv=8, num_heads=2, num_layers=24
        )
        weights = small_weights.text_encoder_weights(sizes, torch.bfloat16, seed=0)
        if comfy.sd.detect_te_model(weights) == comfy.sd.TEModel.T5_XXL:
            break
    path = tmp_path / "narrow.safetensors"
    save_file(weights | {"spiece_model": small_weights.tokenizer_model(sizes.vocab_size)}, path)
    options = {"umt5xxl_model_config": vars(sizes)}
    stock = comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType.WAN, model_options=options)
    assert torch.equal(embed(text_encoder.load_text_encoder(path)), embed(stock))


@pytest.mark.parametrize(("rename", "marker_length"), [(dict, 0), (small_weights.in_wan_naming, 2)])
def test_scaled_fp8_files_are_read_with_their_scales(weights, load, rename, marker_length):
    tokenizer = {"spiece_model": weights.pop("spiece_model")}
    exact = embed(load(weights | tokenizer))
    eight_bits = embed(load(rename(quantise(weights, marker_length)) | tokenizer))
    assert 0 < (eight_bits - exact).norm() / exact.norm() < 0.1


def test_unscaled_fp8_files_keep_the_precision_of_their_norms(weights, load):
    exact = embed(load(weights))
    rounded = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in weights.items()}
    assert 0 < (embed(load(rounded)) - exact).norm() / exact.norm() < 0.2


def test_a_newer_quantisation_is_read_or_refused_but_never_misread(weights, load):
    weights[f"{BLOCK}q.weight"] = weights[f"{BLOCK}q.weight"].to(torch.float8_e4m3fn)
    weights[f"{BLOCK}q.weight_scale"] = torch.tensor(2.0)
    if hasattr(comfy.utils, "convert_old_quants"):
        pytest.skip("this ComfyUI reads the newer format itself")
    with pytest.raises(
        ValueError, match=r"mine\.safetensors is quantised in a way this ComfyUI is too old to read"
    ):
        load(weights)


def test_what_metadata_says_of_layers_must_be_readable(weights, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(weights, path, {"_quantization_metadata": '{"layers": 8}'})
    with pytest.raises(
        ValueError, match=r"^mine\.safetensors: .* how each layer is quantised.*download it again"
    ):
        text_encoder.load_text_encoder(path)


def test_parentheses_are_text(folder):
    clip = text_encoder.load_text_encoder(folder / "umt5_small.safetensors")
    assert not torch.equal(embed(clip, "a (cat:1.4)"), embed(clip, "a cat"))


def test_comfyui_can_ask_for_a_fresh_copy(folder):
    clip = text_encoder.load_text_encoder(folder / "umt5_small.safetensors")
    reload, arguments = clip.patcher.cached_patcher_init
    copy = reload(*arguments, disable_dynamic=True)
    assert copy.model is not clip.patcher.model
    assert all(
        map(torch.equal, copy.model.state_dict().values(), clip.patcher.model.state_dict().values())
    )


class TestTokenizer:
    """A file without a tokenizer takes one that fits its vocabulary."""

    def test_a_neighbour_with_another_vocabulary_or_damage_is_passed_over(
        self, weights, load, folder, tmp_path
    ):
        spiece = weights.pop("spiece_model")
        save_file(
            {"shared.weight": torch.zeros(9, 4), "spiece_model": spiece}, tmp_path / "a.safetensors"
        )
        (tmp_path / "b.safetensors").write_bytes(b"damaged")
        neighbours = [
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            folder / "umt5_small.safetensors",
        ]
        assert embed(load(weights, neighbours)).any()

    def test_none_in_reach(self, weights, load, folder):
        del weights["spiece_model"]
        with pytest.raises(
            ValueError, match=r"mine\.safetensors holds no tokenizer.*640 tokens.*umt5_xxl_fp8"
        ):
            load(weights, [folder / WAN_FILE])

    def test_a_neighbour_whose_vocabulary_has_no_size_is_passed_over(self, weights, load, tmp_path):
        spiece = weights.pop("spiece_model")
        save_file(
            {"shared.weight": torch.tensor(1.0), "spiece_model": spiece}, tmp_path / "a.safetensors"
        )
        with pytest.raises(ValueError, match="holds no tokenizer"):
            load(weights, [tmp_path / "a.safetensors"])

    @pytest.mark.parametrize(
        "damage", [torch.zeros(7, dtype=torch.uint8), torch.zeros(0), torch.zeros(7).bfloat16()]
    )
    def test_damaged(self, weights, load, damage):
        weights["spiece_model"] = damage
        with pytest.raises(
            ValueError, match=r"mine\.safetensors: its 'spiece_model' is no sentencepiece model"
        ):
            load(weights)

    def test_a_token_that_is_no_text(self, weights, load):
        """As where a download changed bytes in the middle of one, which sentencepiece takes."""
        model = bytearray(weights["spiece_model"].numpy().tobytes())
        pieces = SentencePieceProcessor(model_proto=bytes(model))
        longest = max(map(pieces.id_to_piece, range(pieces.get_piece_size())), key=len).encode()
        model[model.index(longest)] = 0xFF
        weights["spiece_model"] = torch.tensor(list(model), dtype=torch.uint8)
        with pytest.raises(
            ValueError,
            match=r"^mine\.safetensors: its 'spiece_model' is no sentencepiece model. Download the",
        ):
            load(weights)

    def test_too_large(self, weights, load):
        weights["shared.weight"] = weights["shared.weight"][:100]
        with pytest.raises(
            ValueError, match=r"its tokenizer has \d+ tokens, the encoder knows 100"
        ):
            load(weights)


class TestWrongFiles:
    """Each names the file, what was found, and what to use instead."""

    @pytest.mark.parametrize(
        ("names", "kind"),
        [
            (["text_model.encoder.layers.0.mlp.fc1.weight"], "looks like a CLIP text encoder"),
            (["model.layers.0.self_attn.k_proj.weight"], "looks like a language model"),
            (["blocks.0.self_attn.norm_q.weight"], "looks like a diffusion model"),
            (["decoder.conv_in.weight"], "looks like a VAE"),
            (["surprise"], "begins with 'surprise'"),
            (
                ["token_embedding.weight", "norm.weight"],
                "has no 'encoder.block.0.layer.0.SelfAttention.q.weight'",
            ),
        ],
    )
    def test_other_kinds(self, load, names, kind):
        with pytest.raises(
            ValueError, match=r"mine\.safetensors is no umT5.*umt5_xxl_fp8"
        ) as caught:
            load({name: torch.zeros(2, 2) for name in names})
        assert kind in str(caught.value)

    @pytest.mark.parametrize("rename", [dict, small_weights.in_wan_naming])
    def test_t5_has_one_relative_bias_for_all_blocks(self, weights, load, rename):
        del weights["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]
        with pytest.raises(ValueError, match=r"is a T5 or mT5 encoder, not a umT5"):
            load(rename(weights))

    def test_missing_weight(self, weights, load):
        del weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
        with pytest.raises(
            ValueError, match=r"incomplete umT5 encoder: it has no 'encoder\.block\.1\.layer\.1.*wo"
        ):
            load(weights)

    def test_wrong_shape(self, weights, load):
        weights[f"{BLOCK}o.weight"] = torch.zeros(3, 64)
        with pytest.raises(
            ValueError, match=r"SelfAttention\.o\.weight' has shape \[3, 64\], .*\[64, 64\]"
        ):
            load(weights)

    @pytest.mark.parametrize(
        "name", ["shared.weight", f"{BLOCK}q.weight", f"{BLOCK}relative_attention_bias.weight"]
    )
    @pytest.mark.parametrize("shape", [(), (64,), (0, 64), (2, 2, 2)])
    def test_a_size_that_is_none(self, weights, load, name, shape):
        weights[name] = torch.zeros(shape)
        with pytest.raises(
            ValueError, match=rf"^mine\.safetensors: '{name}' has shape \[.*\], no matrix\. Put"
        ):
            load(weights)

    @pytest.mark.parametrize("name", ["encoder.final_layer_norm.weight", f"{BLOCK}q.weight"])
    def test_whole_numbers(self, weights, load, name):
        weights[name] = torch.zeros(weights[name].shape, dtype=torch.int8)
        with pytest.raises(
            ValueError,
            match=rf"^mine\.safetensors: '{name}' holds torch\.int8, not fractions\. Put",
        ):
            load(weights)

    def test_a_block_number_makes_no_blocks(self, weights, load):
        weights["encoder.block.99999999.layer.0.layer_norm.weight"] = torch.zeros(64)
        with pytest.raises(
            ValueError, match=r"it has 'encoder\.block\.99999999' but no 'encoder\.block\.2'\. Put"
        ):
            load(weights)

    def test_a_tokenizer_alone(self, weights, load):
        with pytest.raises(ValueError, match="is no umT5 text encoder: it holds a tokenizer alone"):
            load({"spiece_model": weights["spiece_model"]})

    def test_cut_off(self, folder, tmp_path):
        path = tmp_path / "cut.safetensors"
        path.write_bytes((folder / "umt5_small.safetensors").read_bytes()[:-1000])
        with pytest.raises(
            ValueError,
            match=r"cut\.safetensors cannot be read.*no complete safetensors file.*download",
        ):
            text_encoder.load_text_encoder(path)

    def test_not_safetensors(self, folder, tmp_path):
        shutil.copy(folder / WAN_FILE, tmp_path / "renamed.safetensors")
        with pytest.raises(
            ValueError, match=r"renamed\.safetensors is a PyTorch file under another name"
        ):
            text_encoder.load_text_encoder(tmp_path / "renamed.safetensors")

    @pytest.mark.parametrize("content", [b"<html>", b"PK\x03\x04 cut", b"\x80\x02}q\x00."])
    def test_damaged_pickle(self, tmp_path, content):
        (tmp_path / "page.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"page\.pth"):
            text_encoder.load_text_encoder(tmp_path / "page.pth")

    def test_pickle_with_code(self, tmp_path):
        torch.save({"weight": shutil.rmtree}, tmp_path / "trap.pth")
        with pytest.raises(
            ValueError, match=r"trap\.pth cannot be read: it holds Python objects.*could run code"
        ):
            text_encoder.load_text_encoder(tmp_path / "trap.pth")

    def test_no_tensors(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "state.pth")
        with pytest.raises(ValueError, match=r"state\.pth holds no tensors"):
            text_encoder.load_text_encoder(tmp_path / "state.pth")

    def test_empty_folder_and_missing(self, tmp_path):
        (tmp_path / "nothing.pth").touch()
        for name, found in (
            ("nothing.pth", "is empty"),
            ("", "is a folder"),
            ("gone.pth", "is missing"),
        ):
            with pytest.raises(ValueError, match=found):
                text_encoder.load_text_encoder(tmp_path / name)


def test_an_encoder_that_cuts_texts_into_chunks_is_left_to_the_model_to_refuse():
    """CLIP's tokens come 77 at a time; of what is lost of a sound nothing can be said."""
    chunks = {"l": [[(5, 1.0)] * 77] * 2}
    clip = SimpleNamespace(
        tokenize=lambda _text, **_options: chunks,
        encode_from_tokens_scheduled=lambda tokens: [[torch.zeros(1, 154, 768), tokens]],
    )
    prompt = "A man walks by the sea. Audio: waves."
    ((text, tokens),), _ = encode.encode_prompts(clip, prompt, "", "")
    assert text.shape == (1, 154, 768)
    assert {**tokens} == chunks
