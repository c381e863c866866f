"""Both stages in small, for a model that `make quickstart` has drawn and given sight: minutes on two cores.

    configs/quickstart.py:pretrain,registers=2,layer=2     configs/quickstart.py:finetune,full

The recipes are those of configs/pretrain.py and configs/finetune.py; what is set here is what a small model wants.
"""

from ml_collections import ConfigDict

from configs import finetune, pretrain

STAGES = {"pretrain": pretrain, "finetune": finetune}


def get_config(argument: str = "") -> ConfigDict:
    stage, _, rest = argument.partition(",")
    if stage not in STAGES:
        raise ValueError(f"{stage!r} is no stage: write configs/quickstart.py:pretrain,… or :finetune,…")
    config = STAGES[stage].get_config(rest)
    config.size = "small"
    config.batch_size = 16 if stage == "pretrain" else 8
    config.total_steps = 40 if stage == "pretrain" else 3200
    config.seed = 0
    config.dtype = "float32"
    config.data.workers = 0  # a worker's start costs more than it gives
    config.data.max_bad_rows = 0  # the data is ours
    config.optimizer.learning_rate = 1e-3 if stage == "pretrain" else 1.5e-3
    config.optimizer.warmup_ratio = 0.05
    config.optimizer.b2 = 0.98
    config.checkpoint.every = 800
    config.checkpoint.keep_last = 1
    return config
