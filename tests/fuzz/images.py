"""Picture files of every format and mode that is read, damaged or not. The reference is the CLIP processor of
transformers, in its own way of reading them."""

import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from fuzz.property import REFUSALS, Surface
from fuzz.strange import Damage, damaged, damages
from victor_jax.data.images import FORMATS, ImageFolder, preprocess
from victor_jax.ops.images import normalise

SIZE = 28
EDGES = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
PROCESSORS = {"square": CLIPImageProcessorPil(**EDGES), "pad": LlavaImageProcessorPil(do_pad=True, **EDGES)}
MODES = {
    "JPEG": ("RGB", "L", "CMYK", "YCbCr", "1"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I"),
    "GIF": ("P", "L", "RGB", "RGBA", "1"),
    "WEBP": ("RGB", "RGBA", "L", "P"),
    "BMP": ("RGB", "L", "P", "1", "RGBA"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "PPM": ("RGB", "L", "1", "I;16", "I", "F", "RGBA"),
}
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({}, {"progressive": True}, {"quality": 5}, {"subsampling": 0}, {"restart_marker_rows": 1}),
    "PNG": ({}, {"transparency": 0}, {"bits": 4}, {"dpi": (1, 1)}),
    "GIF": ({}, {"transparency": 0}, {"interlace": 1}),
    "WEBP": ({}, {"lossless": True}, {"quality": 1}),
    "TIFF": (
        {},
        {"compression": "tiff_lzw"},
        {"compression": "tiff_deflate"},
        {"compression": "packbits"},
        {"compression": "jpeg"},
    ),
}
sides = st.one_of(st.integers(1, 40), st.sampled_from((1, 2, 27, 28, 29, 199, 200, 201, 401, 700, 3000)))


@dataclass(frozen=True)
class Picture:
    """As a program writes it, then damaged."""

    format: str
    mode: str
    width: int
    height: int
    seed: int
    frames: int
    turned: int  # the EXIF tag
    options: dict[str, Any]
    damage: list[Damage]

    def data(self) -> bytes:
        frames = [self.frame(number) for number in range(self.frames)]
        more = {"save_all": True, "append_images": frames[1:]} if self.frames > 1 else {}
        if self.format in ("JPEG", "WEBP", "PNG") and self.turned:
            exif = Image.Exif()
            exif[0x0112] = self.turned
            more["exif"] = exif
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                frames[0].save(file, self.format, **self.options, **more)
            except Exception:  # PIL cannot write this mode in this format
                file = io.BytesIO()
                Image.new("RGB", frames[0].size).save(file, "PNG")
        return damaged(file.getvalue(), self.damage)

    def frame(self, number: int) -> Image.Image:
        rng = np.random.default_rng(self.seed + number)
        noise = Image.fromarray(rng.integers(0, 256, (self.height, self.width, 3), np.uint8))
        if self.mode in ("I;16", "I", "F"):
            numbers = rng.integers(0, 70_000, (self.height, self.width))
            types = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
            return Image.fromarray(numbers.astype(types[self.mode]))
        if self.mode == "LAB":
            return Image.new("LAB", noise.size, (40, 3, 9))
        return noise.convert(self.mode)


@dataclass(frozen=True)
class Chunks:
    """A PNG put together by hand: any size may be claimed, with few bytes behind it."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: int
    rows: int  # that are there
    tail: bytes = field(repr=False, default=b"")

    def data(self) -> bytes:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(self.colour, 1)
        row = bytes(1 + (self.width * channels * self.depth + 7) // 8)
        with contextlib.suppress(MemoryError):
            squeeze = zlib.compressobj(9)
            body = b"".join(squeeze.compress(row) for _ in range(min(self.rows, self.height))) + squeeze.flush()
        head = struct.pack(">IIBBBBB", self.width, self.height, self.depth, self.colour, 0, 0, self.interlaced)
        parts = [(b"IHDR", head), (b"PLTE", bytes(768)), (b"IDAT", body), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )


@dataclass(frozen=True)
class Header:
    """Formats whose header is a few numbers."""

    kind: str
    numbers: tuple[int, int, int]
    body: bytes

    def data(self) -> bytes:
        width, height, most = self.numbers
        if self.kind in ("P1", "P2", "P3", "P4", "P5", "P6", "Pf"):
            return f"{self.kind} {width} {height} {most}\n".encode() + self.body
        if self.kind == "GIF":
            return b"GIF89a" + struct.pack("<HHBBB", width & 0xFFFF, height & 0xFFFF, most & 0xFF, 0, 0) + self.body
        if self.kind == "BMP":
            header = struct.pack("<IIIHHIIiiII", 40, width, height, 1, 8, most % 5, 0, 0, 0, 2, 0)
            return b"BM" + struct.pack("<IHHI", 0, 0, 0, 62) + header + bytes(8) + self.body
        return tiff(width, height, most, self.body)


def tiff(width: int, height: int, most: int, body: bytes) -> bytes:
    """Little-endian, gray, in strips or tiles of a claimed size."""
    tags = {
        256: width,
        257: height,
        258: 8,
        259: (1, 5, 8, 32773)[most % 4],
        262: 1,
        273: 8,
        277: 1,
        278: most,
        279: len(body),
    }
    if most % 3 == 0:
        tags = {key: value for key, value in tags.items() if key not in (273, 278, 279)}
        tags |= {322: most, 323: most, 324: 8, 325: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


pictures = st.sampled_from(FORMATS).flatmap(
    lambda form: st.builds(
        Picture,
        st.just(form),
        st.sampled_from(MODES[form]),
        sides,
        sides.filter(lambda side: side < 1000),
        st.integers(0, 9),
        st.sampled_from((1, 1, 1, 3)),
        st.sampled_from((0, 0, 3, 6)),
        st.sampled_from(OPTIONS.get(form, ({},))),
        st.one_of(st.just([]), damages),
    )
)
claimed = st.one_of(st.integers(0, 300), st.sampled_from((1, 164, 2_000, 9_400, 32_768, 65_535, 2**31 - 1, 2**32 - 1)))
chunks = st.builds(
    Chunks,
    claimed,
    claimed,
    st.sampled_from((1, 2, 4, 8, 16, 3)),
    st.sampled_from((0, 2, 3, 4, 6, 1)),
    st.integers(0, 1),
    st.sampled_from((0, 1, 7, 300)),
).filter(lambda one: one.width < 1 << 20)
headers = st.builds(
    Header,
    st.sampled_from(("P1", "P2", "P3", "P4", "P5", "P6", "Pf", "GIF", "BMP", "TIFF", "TIFF")),
    st.tuples(claimed, claimed, st.one_of(claimed, st.just(255))),
    st.one_of(st.binary(max_size=300), st.sampled_from((b"1 " * 2000, bytes(3000), b"\0\1" * 2000))),
)


class Images(Surface):
    name, short = "images", 150
    seconds, megabytes = 2.0, 1500  # of a worker, whatever the picture
    inputs = st.one_of(pictures, pictures, pictures, chunks, headers)

    def prepare(self, given, room):
        (room / "picture").write_bytes(given.data())
        return room / "picture"

    def attempt(self, prepared, room):
        image = ImageFolder(room).open(prepared.name)
        return {aspect: preprocess(image, SIZE, aspect) for aspect in PROCESSORS}

    def compare(self, prepared, result):
        if isinstance(result, REFUSALS):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for aspect, processor in PROCESSORS.items():
                with Image.open(prepared) as image:
                    if image.has_transparency_data:  # which LLaVA drops, and transformers puts on white
                        image.info.pop("transparency", None)
                        image = image.convert("RGB")
                    expected = processor(image, return_tensors="np")["pixel_values"][0]
                np.testing.assert_array_equal(np.asarray(normalise(result[aspect])), expected)
