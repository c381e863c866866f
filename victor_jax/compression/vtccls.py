"""VTC-CLS (Wang et al., arXiv 2412.05819): the patches stay that the class token attends to most, before the projector.

A patch's score is the class token's attention to it, mean over heads and added up over the vision layers from `first`
to the one that gives the features; the best `tokens` go on in reading order. Untrained or trained. As in
THU-MIG/VTC-CLS, whose code has no default for `first` either. It counts from 0; LLaVA-1.5 takes its features from layer
22.
"""

from victor_jax.compression.grid import check_grid
from victor_jax.compression.patches import MostAttended, features_layer
from victor_jax.compression.plan import Layers, Method, Plan, Positive
from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig


def vtccls(config: VLMConfig, tokens: Positive, first: int) -> Method:
    check_grid(config)
    last = features_layer(config)
    if first > last:
        raise UserError(f"first={first} is above the vision layer that gives the features: choose 0 to {last}")
    kept = MostAttended(min(tokens, config.vision.patches), 1, range(first, last + 1))
    return Method(Plan((Layers(config.language.depth),)), compressor=kept)
