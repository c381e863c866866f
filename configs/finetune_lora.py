"""Stage 2 with low-rank adapters on the language tower's linear layers; projector and registers train in full."""

from ml_collections import ConfigDict

from configs.common import base, shrink


def get_config(argument: str = "") -> ConfigDict:
    config, runlocal = base(argument)
    config.trainable = ("projector", "compression")
    config.batch_size = 128  # [llava]
    config.optimizer.learning_rate = 2e-4  # [llava]
    config.optimizer.projector_learning_rate = 2e-5  # [llava]
    config.lora.rank = 128  # [llava] alpha 256, dropout 0.05
    if runlocal:
        shrink(config)
    return config
