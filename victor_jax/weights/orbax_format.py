"""Our own format: config.json and an Orbax checkpoint of per-layer arrays under `params`.

Any Orbax reader restores `params` as a nested dict. It is written and read tensor by tensor, slice by slice.
"""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import type_handlers

from victor_jax.errors import UserError
from victor_jax.models.config import VLMConfig
from victor_jax.prompt import Prompt, prompt_from_json
from victor_jax.weights.hf_config import checked, token, whole
from victor_jax.weights.tensors import Index, Tensor

MODEL_TYPE = "victor_jax"
VERSION = 1
CHUNK_BYTES = 2**20  # a shard reads whole chunks: small ones keep it from reading its neighbours' bytes


class _LazyHandler(type_handlers.NumpyHandler):
    """Lets Orbax write our lazy tensors one after the other, so that one of them is in memory at a time."""

    def __init__(self, progress: Any) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list:
        for value, info, arg in zip(values, infos, args, strict=True):
            for future in await super().serialize([value.load()], [info], [arg]):
                future.result()
            self._progress(value.nbytes)
        return []


def write_params(folder: Path, tensors: dict[str, Tensor], progress: Any) -> None:
    tree = unflatten_dict(tensors, sep="/")
    registry = type_handlers.create_type_handler_registry(
        (Tensor, _LazyHandler(progress)), (jax.Array, type_handlers.ArrayHandler())
    )
    me = jax.process_index()  # alone: the other processes of a run have no part in this
    alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f"write_{me}")
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=registry, use_compression=False, multiprocessing_options=alone
    )
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder.absolute() / "params", ocp.args.PyTreeSave(tree, save_args=chunks))


def read_params(folder: Path) -> dict[str, Tensor]:
    params = folder.absolute() / "params"
    # Asked here: without it Orbax opens every array as a folder of its own and leaves failed reads behind.
    if not (params / "manifest.ocdbt").is_file():
        raise UserError(f"{params} is not a complete Orbax checkpoint (it has no manifest.ocdbt): convert again")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(params).item_metadata.tree
    except (FileNotFoundError, ValueError, KeyError, AttributeError) as error:  # the last where it has no metadata
        raise UserError(f"{params} is not a complete Orbax checkpoint ({error}): convert again") from None
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    context = type_handlers.get_ts_context()
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    return {name: _lazy(params, name, leaf, context) for name, leaf in named}


def _lazy(params: Path, name: str, leaf: Any, context: ts.Context) -> Tensor:
    base = {"driver": "file", "path": f"{params}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".")}

    def read(index: Index) -> np.ndarray:
        try:
            array = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, context=context).result()
            return array[index].read().result()
        except ValueError as error:
            raise UserError(f"{params} lost the tensor {name} ({error}): convert again") from None

    return Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), read)


def config_dict(config: VLMConfig, compression: str, prompt: Prompt) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
        "version": VERSION,
        "compression": compression,
        "prompt": dataclasses.asdict(prompt),
        "architecture": dataclasses.asdict(config),
    }


def config_from_dict(raw: dict[str, Any], file: Path) -> tuple[VLMConfig, str, Prompt]:
    """config.json of our format -> the architecture, the written compression and the prompt."""
    if raw.get("version") != VERSION:
        raise UserError(f"{file} has version {raw.get('version')}, this release reads version {VERSION}")
    try:
        config = whole(_build(VLMConfig, raw["architecture"], "architecture", str(file)), str(file))
        return config, raw["compression"], prompt_from_json(raw.get("prompt", {}), file)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} does not describe a model of ours ({error}): convert again") from None


def _build(kind: Any, written: Any, key: str, file: str) -> Any:
    """The inverse of `dataclasses.asdict`."""
    options: list[Any] = [option for option in (kind, *get_args(kind)) if dataclasses.is_dataclass(option)]
    if get_origin(kind) is tuple and isinstance(written, list):
        return tuple(token(one, key, file) for one in written)
    if key in ("image_token", "pad_token"):
        return token(written, key, file)
    if not options or (written is None and type(None) in get_args(kind)):
        return None if options else checked(written, kind, key, file)
    for option in options:  # several in a union: told apart by their fields
        hints = get_type_hints(option)
        if isinstance(written, dict) and hints.keys() == written.keys():
            return option(**{key: _build(hints[key], value, key, file) for key, value in written.items()})
    raise TypeError(f"{' or '.join(option.__name__ for option in options)} cannot be {written!s:.80}")
