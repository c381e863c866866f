"""The numbers of an architecture, as small frozen dataclasses. They know nothing of files or methods."""

from dataclasses import dataclass
from typing import Literal

from victor_jax.ops.rope import Rope

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower."""

    width: int
    mlp_width: int
    depth: int
    heads: int
    image_size: int
    patch_size: int
    activation: Activation
    norm_eps: float

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LanguageConfig:
    """A decoder of the Llama kind: Llama, Vicuna, Mistral, Qwen2."""

    family: Literal["llama", "mistral", "qwen2"]  # its name in checkpoints; the model never asks
    width: int
    mlp_width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    tied_embeddings: bool
    sliding_window: int | None
    max_positions: int


@dataclass(frozen=True)
class ProjectorConfig:
    kind: Literal["linear", "mlp"]  # mlp: two layers with an exact GELU between them
    bias: bool


@dataclass(frozen=True)
class VLMConfig:
    vision: VisionConfig
    projector: ProjectorConfig
    language: LanguageConfig
    feature_levels: tuple[int, ...]  # vision layers run before each feature is taken; several are joined
    keep_class_token: bool
    image_token: int
    pad_token: int
    end_tokens: tuple[int, ...]

    @property
    def features_per_image(self) -> int:
        """Of the vision tower, before any compression."""
        return self.vision.patches + self.keep_class_token

    @property
    def head_dims(self) -> tuple[int, int]:
        """Of both towers' attention."""
        return self.vision.width // self.vision.heads, self.language.head_dim
