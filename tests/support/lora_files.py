"""LoRA files for the small model under every naming trainers use, with the same numbers in each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from small_weights import OviSizes, Weights, ovi_shapes, random_weights
from weights import seeded

AUDIO = "audio_model."
RANK = 4
# One layer of each sort: attention, fusion and feed-forward in a block, what stands around the
# blocks, a convolution.
VIDEO_LAYERS = (
    "blocks.0.cross_attn.k",
    "blocks.1.self_attn.q",
    "blocks.2.ffn.0",
    "blocks.3.cross_attn.v_fusion",
)
AUDIO_LAYERS = ("audio_model.blocks.1.self_attn.q", "audio_model.blocks.3.cross_attn.k_fusion")
END_LAYERS = (
    "patch_embedding",
    "text_embedding.2",
    "time_embedding.0",
    "time_projection.1",
    "head.head",
    "audio_model.text_embedding.0",
    "audio_model.head.head",
)
BLOCK_LAYERS = ("blocks.1.self_attn.o", "blocks.2.ffn.2", "audio_model.blocks.2.cross_attn.v")
LAYERS = (*VIDEO_LAYERS, *AUDIO_LAYERS, *END_LAYERS, *BLOCK_LAYERS)

# What diffusers calls them, without the tower; it knows no fusion layers.
DIFFUSERS_NAMES = {
    "blocks.0.cross_attn.k": "blocks.0.attn2.to_k",
    "blocks.1.self_attn.q": "blocks.1.attn1.to_q",
    "blocks.1.self_attn.o": "blocks.1.attn1.to_out.0",
    "blocks.2.cross_attn.v": "blocks.2.attn2.to_v",
    "blocks.2.ffn.0": "blocks.2.ffn.net.0.proj",
    "blocks.2.ffn.2": "blocks.2.ffn.net.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}


def in_diffusers(layer: str) -> str:
    tower = AUDIO if layer.startswith(AUDIO) else ""
    layer = layer.removeprefix(AUDIO)
    return tower + DIFFUSERS_NAMES.get(layer, layer)


@dataclass(frozen=True)
class Style:
    """How a trainer names a layer, and the two matrices of its LoRA."""

    prefix: str
    matrices: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    video_tower: str = ""
    underscores: bool = False
    spell: Callable[[str], str] = str

    def name(self, layer: str) -> str:
        """The name of one of our layers in a file."""
        name = (
            self.spell(layer) if layer.startswith(AUDIO) else self.video_tower + self.spell(layer)
        )
        return self.prefix + (name.replace(".", "_") if self.underscores else name)


KOHYA = ("lora_down.weight", "lora_up.weight")
DEFAULT = ("lora_A.default.weight", "lora_B.default.weight")
STYLES = {
    "comfy": Style("diffusion_model."),
    "comfy_down_up": Style("diffusion_model.", KOHYA),
    "kohya": Style("lora_unet_", KOHYA, underscores=True),
    "kohya_released": Style("lora_unet_", KOHYA, "video_model.", underscores=True),
    "wan_fun": Style("lora_unet__", KOHYA, underscores=True),
    "lycoris": Style("lycoris_", KOHYA, underscores=True),
    "bare": Style("", DEFAULT),
    "peft": Style("base_model.model."),
    "peft_released": Style("base_model.model.", DEFAULT, "video_model."),
    "transformer": Style("transformer."),
    "released": Style("", video_tower="video_model."),
    "comfy_released": Style("diffusion_model.", video_tower="video_model."),
    "checkpoint": Style("model.diffusion_model."),
    "diffusers": Style("transformer.", spell=in_diffusers),
    "diffusers_bare": Style("", spell=in_diffusers),
    "diffusers_comfy": Style("diffusion_model.", spell=in_diffusers),
    "diffusers_peft": Style("base_model.model.", DEFAULT, spell=in_diffusers),
    "diffusers_kohya": Style("lora_unet_", KOHYA, underscores=True, spell=in_diffusers),
    "diffusers_one_trainer": Style(
        "lora_transformer_", KOHYA, underscores=True, spell=in_diffusers
    ),
    "diffusers_lycoris": Style("lycoris_", KOHYA, underscores=True, spell=in_diffusers),
}


def released_name(layer: str) -> str:
    """What the released file calls a layer."""
    return layer if layer.startswith(AUDIO) else f"video_model.{layer}"


def lora(layers, style: Style = STYLES["comfy"]) -> Weights:
    """A LoRA of rank 4 on these layers, convolutions too; the same numbers whatever the names."""
    shapes = ovi_shapes(OviSizes())
    weights = {}
    for layer in layers:
        rows, *columns = shapes[f"{released_name(layer)}.weight"]
        ups = (rows, RANK, *(1 for _ in columns[1:]))
        drawn = random_weights({f"{layer}.down": (RANK, *columns), f"{layer}.up": ups}, seed=3)
        for part, matrix in zip(("down", "up"), style.matrices, strict=True):
            weights[f"{style.name(layer)}.{matrix}"] = drawn[f"{layer}.{part}"]
    return weights


def merged(weights: Weights, layers, strength: float = 1.0) -> Weights:
    """Weights under their released names with the LoRA on these layers added to them."""
    added = lora(layers)
    for layer in layers:
        up, down = (added[f"diffusion_model.{layer}.lora_{part}.weight"] for part in "BA")
        key = f"{released_name(layer)}.weight"
        weights = {
            **weights,
            key: weights[key] + strength * (up.flatten(1) @ down.flatten(1)).view_as(weights[key]),
        }
    return weights


def write_lora(path: Path, layers, style: str = "comfy") -> None:
    """Save such a LoRA."""
    save_file(lora(layers, STYLES[style]), path)


def save(folder: Path, state_dict: Weights, name: str = "test.safetensors") -> str:
    """Save tensors as they are and return the file's path."""
    save_file(state_dict, folder / name)
    return str(folder / name)


def matrices(layer: str, rows: int = 32, columns: int = 32) -> Weights:
    """A LoRA of one layer of the unit tests' model."""
    return {
        f"{layer}.lora_A.weight": seeded(f"{layer} down", (RANK, columns)),
        f"{layer}.lora_B.weight": seeded(f"{layer} up", (rows, RANK)),
    }


def glora(layer: str, dim: int = 32) -> Weights:
    """A GLoRA, which adds what depends on the weight, of one square layer."""
    shapes = {"a1": (dim, RANK), "a2": (RANK, dim), "b1": (dim, RANK), "b2": (RANK, dim)}
    return {f"{layer}.{name}.weight": seeded(name, shape) for name, shape in shapes.items()}


def with_lora(graph, model, file: str, strength: float = 1.0):
    """Add the stock LoRA loader."""
    return graph.add("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=strength)
