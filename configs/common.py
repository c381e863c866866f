"""What all recipes share: LLaVA-1.5's values, and how a recipe's argument is read.

    configs/finetune.py:registers=8,layer=3,size=13b,recipe=paper,runlocal
    configs/finetune.py:vtw,layer=12
    configs/finetune.py:pool:tokens=144+victor:registers=8,layer=3

A bare word names the method (victor by default), `runlocal` shrinks the recipe; all but `size` and `recipe` are fields
of the method. A colon among them says that they are a written compression as it is. Either way they go into
config.compression, which is judged where the model is built.

Sources: [llava] haotian-liu/LLaVA scripts/v1_5/*.sh and the defaults of the Hugging Face Trainer under them;
[victor] arXiv 2410.14072, section 4.1; [ours] our own choice.
"""

from ml_collections import ConfigDict

FIELDS = {"victor": {"registers": "8", "layer": "3"}, "vtw": {"layer": "16"}}  # [victor] k = 3; VTW: 16 of 32


def base(argument: str) -> tuple[ConfigDict, bool]:
    """The shared configuration, and whether `runlocal` is in the argument."""
    words = [word for word in argument.split(",") if word]
    own = {"recipe": "llava", "size": "7b"}
    own |= dict(word.split("=", 1) for word in words if word.startswith(("recipe=", "size=")))
    config = ConfigDict()
    config.recipe, config.size = own["recipe"], own["size"]
    config.init_from = config.vision_from = config.projector_from = ""
    config.compression = compression([word for word in words if word.split("=")[0] not in (*own, "runlocal")])
    config.total_steps = 0
    config.epochs = 1  # [llava]
    config.micro_batches = 0  # [ours] as few parts as leave each device at most 16 rows of a part [llava: 16 per GPU]
    config.seed = 42  # [llava] the Trainer's default
    config.dtype = "bfloat16"  # [llava]
    config.param_dtype = "float32"  # [ours] AdamW at 2e-5 loses its updates in bfloat16
    config.remat = "full"  # [llava] gradient checkpointing
    config.loss_chunk = 512  # [ours]
    config.attention = "auto"  # [ours] cuDNN on a GPU, splash on a TPU
    config.log_every = 1
    config.wandb = False
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": -1})
    config.data = ConfigDict(
        {
            "path": "",
            "images": "",
            "template": "vicuna_v1",
            "tokenizer": "",
            "aspect": "pad",
            "index": "",
            "max_length": 2048,  # [llava]
            "workers": 4,
            "max_bad_rows": 1000,  # [ours]
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 2e-5,
            "projector_learning_rate": 0.0,
            "warmup_ratio": 0.03,  # [llava]
            "cosine": True,  # [llava]
            "weight_decay": 0.0,  # [llava] [victor]
            "b1": 0.9,  # [llava] the Trainer's defaults, from here on
            "b2": 0.999,
            "eps": 1e-8,
            "clip_norm": 1.0,
            "mu_dtype": "float32",  # [ours] bfloat16 saves 12.6 GiB of 7B
        }
    )
    config.lora = ConfigDict({"rank": 0, "alpha": 256.0, "dropout": 0.05})
    config.checkpoint = ConfigDict({"every": 500, "keep_last": 2, "keep_every": 0})
    config.evaluation = ConfigDict({"every": 0, "rows": 0, "benchmarks": (), "data": "", "questions": 0})
    config.bad_step = ConfigDict({"action": "stop", "spike_factor": 0.0, "most": 20})
    config.profile = ConfigDict({"first": 10, "steps": 0})  # a trace in DIR/profile, off
    return config, "runlocal" in words


def compression(words: list[str]) -> str:
    """Its written form."""
    if any(":" in word for word in words):
        return ",".join(words)
    method, *more = [word for word in words if "=" not in word] or ["victor"]
    if more:
        raise ValueError(f"{method!r} and {more[0]!r} name two methods: name one")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    fields = ",".join(f"{key}={value}" for key, value in (FIELDS.get(method, {}) | given).items())
    return f"{method}:{fields}" if fields else method


def shrink(config: ConfigDict) -> None:
    """`runlocal`: the same recipe on made-up data with a small random model, in a minute on a laptop."""
    config.size = "small"
    config.init_from = "random"
    config.total_steps = 12
    config.batch_size = 8
    config.dtype = "float32"
    config.remat = "none"
    config.data.path = "sample"
    config.data.max_length = 128
    config.data.workers = 0
    config.optimizer.learning_rate = 1e-3
    config.checkpoint.every = 4
    config.evaluation.every, config.evaluation.rows = 6, 8
    config.lora.rank = min(config.lora.rank, 4)
