"""Wan's own names of umT5's weights as ComfyUI's."""

from .state_dict import StateDict

# Wan's own names to ComfyUI's, applied in order.
RENAMES = (
    ("token_embedding.", "shared."),
    ("blocks.", "encoder.block."),
    ("norm.", "encoder.final_layer_norm."),
)
BLOCK_RENAMES = (
    (".norm1.", ".layer.0.layer_norm."),
    (".norm2.", ".layer.1.layer_norm."),
    (".pos_embedding.embedding.", ".layer.0.SelfAttention.relative_attention_bias."),
    (".attn.", ".layer.0.SelfAttention."),
    (".ffn.gate.0.", ".layer.1.DenseReluDense.wi_0."),
    (".ffn.fc1.", ".layer.1.DenseReluDense.wi_1."),
    (".ffn.fc2.", ".layer.1.DenseReluDense.wo."),
)


def core_names(state_dict: StateDict) -> StateDict:
    """Rename a umT5 state dict in Wan's own naming to ComfyUI's; other names stay as they are."""
    if "token_embedding.weight" not in state_dict:
        return dict(state_dict)
    return {_core_name(name): tensor for name, tensor in state_dict.items()}


def _core_name(name: str) -> str:
    for old, new in RENAMES:
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    for old, new in BLOCK_RENAMES:
        name = name.replace(old, new)
    return name
