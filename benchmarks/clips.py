"""Sizes that the benchmarks share: of clips, by name, and of both towers."""

from dataclasses import dataclass, field

RELEASED = {
    "dim": 3072,
    "ffn_dim": 14336,
    "num_layers": 30,
    "text_dim": 4096,
    "freq_dim": 256,
    "num_heads": 24,
}
NARROW = {**RELEASED, "dim": 1024, "ffn_dim": 4096, "num_layers": 4, "num_heads": 8}


@dataclass(frozen=True)
class Clip:
    """Size of a clip in pixels and frames, sizes of the towers that make it, and of its sound where
    it is not usual.
    """

    width: int
    height: int
    frames: int
    sizes: dict = field(default_factory=lambda: RELEASED)
    steps: int | None = None

    def shapes(self, batch: int = 1) -> list[tuple[int, ...]]:
        """Shapes of the latents, the video's first."""
        from comfyui_ovi.ovi_model.latent.geometry import audio_steps, latent_frames

        cells = latent_frames(self.frames)
        return [
            (batch, 48, cells, self.height // 16, self.width // 16),
            (batch, 20, self.steps or audio_steps(cells)),
        ]

    def towers(self, layers: int | None = None) -> tuple:
        """The configs of both towers; layers: how many blocks, else all."""
        from comfyui_ovi.ovi_model.config import AudioTowerConfig, VideoTowerConfig

        sizes = {**self.sizes, "num_layers": layers or self.sizes["num_layers"]}
        # Two thirds of four times the width, in whole 256s.
        hidden = -(-(8 * sizes["dim"] // 3) // 256) * 256
        audio = AudioTowerConfig(**sizes, in_dim=20, out_dim=20, patch_hidden=hidden)
        return VideoTowerConfig(**sizes, in_dim=48, out_dim=48), audio

    @property
    def tokens(self) -> int:
        """Tokens of the picture."""
        _, _, cells, rows, columns = self.shapes()[0]
        return cells * rows * columns // 4


CLIPS = {
    "small": Clip(384, 384, 61, NARROW, steps=79),
    "704x704 5 s": Clip(704, 704, 121),
    "960x960 5 s": Clip(960, 960, 121),
    "960x960 10 s": Clip(960, 960, 241),
}
