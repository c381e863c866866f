"""Stage 1: projector and registers learn to speak the language tower's language; everything else is frozen."""

from ml_collections import ConfigDict

from configs.common import base, shrink


def get_config(argument: str = "") -> ConfigDict:
    config, runlocal = base(argument)
    config.trainable = ("projector", "compression")
    config.batch_size = 256  # [llava]
    config.optimizer.learning_rate = 1e-4 if config.recipe == "paper" else 1e-3  # [victor], [llava]
    config.data.template = "plain"  # [llava]
    config.data.aspect = "square"  # [llava] pretrain.sh leaves image_aspect_ratio unset
    if runlocal:
        shrink(config)
    return config
