"""Stage 2: projector, registers and the whole language tower; the vision tower stays frozen."""

from ml_collections import ConfigDict

from configs.common import base, shrink


def get_config(argument: str = "") -> ConfigDict:
    config, runlocal = base(argument)
    config.trainable = ("projector", "compression", "language")
    config.batch_size = 128  # [llava]
    config.optimizer.learning_rate = 2e-5  # [llava] [victor]
    if runlocal:
        shrink(config)
    return config
