"""Architectures by name, for what needs no weights: plans of pods, benchmarks, smoke tests."""

from victor_jax.models.config import LanguageConfig, ProjectorConfig, VisionConfig, VLMConfig
from victor_jax.ops.rope import Rope


def llava(width: int, mlp_width: int, depth: int, vision: VisionConfig, head_dim: int = 128) -> VLMConfig:
    """LLaVA-1.5 as Hugging Face exports it: vocabulary padded to 32064, image token 32000."""
    language = LanguageConfig(
        family="llama",
        width=width,
        mlp_width=mlp_width,
        depth=depth,
        heads=width // head_dim,
        kv_heads=width // head_dim,
        head_dim=head_dim,
        vocabulary=32064,
        norm_eps=1e-5,
        rope=Rope(10000.0),
        qkv_bias=False,
        tied_embeddings=False,
        sliding_window=None,
        max_positions=4096,
    )
    return VLMConfig(
        vision=vision,
        projector=ProjectorConfig("mlp", bias=True),
        language=language,
        feature_levels=(vision.depth - 1,),
        keep_class_token=False,
        image_token=32000,
        pad_token=32001,
        end_tokens=(2,),
    )


CLIP_L_336 = VisionConfig(1024, 4096, 24, 16, 336, 14, "quick_gelu", 1e-5)
SMALL_CLIP = VisionConfig(64, 256, 4, 4, 56, 14, "quick_gelu", 1e-5)

SIZES = {
    "7b": llava(4096, 11008, 32, CLIP_L_336),
    "13b": llava(5120, 13824, 40, CLIP_L_336),
    "small": llava(256, 688, 4, SMALL_CLIP, head_dim=64),  # for smoke tests: seconds on a laptop
}
