"""Sources with images of their own, small and made up."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def image_bytes(seed, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)).save(file, form)
    return file.getvalue()


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
PAIRS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))
LLAVA_NEXT = pa.schema([("id", pa.string()), ("conversations", TURNS), ("data_source", pa.string()), ("image", IMAGE)])
FINEVISION = pa.schema(
    [
        ("images", pa.list_(IMAGE)),
        ("texts", PAIRS),
        ("source", pa.string()),
        ("relevance_ratings", pa.list_(pa.int64())),
    ]
)


def write_llava_next(path, count=7, group=3, first=0):
    """Every third row is text alone."""
    rows = []
    for number in range(first, first + count):
        image = None if number % 3 == 2 else {"bytes": image_bytes(number), "path": f"{number}.png"}
        question = f"Why {number}?" if image is None else f"<image>\nWhat {number}?"
        rows.append({"id": str(number), "conversations": turns(question, "So."), "data_source": "x", "image": image})
    pq.write_table(pa.Table.from_pylist(rows, LLAVA_NEXT), path, row_group_size=group)
    return path


def write_finevision(path):
    """Rows with two images, one, an empty list, none."""
    images = [[0, 1], [2], [], None]
    rows = [
        {
            "images": None if seeds is None else [{"bytes": image_bytes(seed), "path": None} for seed in seeds],
            "texts": [{"user": f"What {number}?", "assistant": "Red."}, {"user": "And?", "assistant": "Blue."}],
            "source": "x",
            "relevance_ratings": [5, 4],
        }
        for number, seeds in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows, FINEVISION), path)
    return path


def write_tar(path, members):
    """Members by name, in their order; what is no bytes becomes JSON."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
