"""Images as LLaVA-1.5 sees them: the CLIP processor's arithmetic bit by bit, in PIL and numpy alone."""

import errno
import io
import stat
import warnings
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from victor_jax.errors import UserError, one_line
from victor_jax.prompt import Aspect

BACKGROUND = (122, 116, 104)  # the mean colour, cut to whole numbers as LLaVA does
# Beyond these a picture takes more than two seconds or 1.5 GB: to be decoded, or to be padded to its square.
MAX_RATIO, MAX_SIDE, MAX_PIXELS, MAX_BYTES = 200, 10_000, 50_000_000, 1 << 28
MAX_WEBP = 24_000_000  # pixels: decoded in a third of the speed of others, in 16 bytes for each
MAX_SCANNED = 300_000_000  # pixels of all scans of a JPEG: a progressive one may have any number
STRIP = 256  # rows of a picture that are padded at once
# Those of PIL's that read pixels alone: others start programs (EPS: Ghostscript) or read further files. JPEG 2000 takes
# half a second per megapixel.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
SLOW = ("bmp_rle", "ppm", "ppm_plain")  # decoders that PIL has in Python: a second per megapixel, and more
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS speaks for itself


class BadImage(Exception):
    """An image that cannot be used: its path and why. The row that wants it is a bad row."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, one_line(reason)

    def __str__(self) -> str:
        # Escaped where a terminal would obey it, or could not show it.
        return f"image {self.path if self.path.isprintable() else ascii(self.path)}: {self.reason}"


def preprocess(image: Image.Image, size: int, aspect: Aspect) -> np.ndarray:
    """uint8 [3, size, size]: RGB, the CLIP processor's picture before it is scaled and normalised.

    `square`: the shorter side to `size` (bicubic), then the centre. `pad`: first a square of the longer side in the
    mean colour with the image in its middle, so that nothing is cut off. Orientation tags are not applied.
    """
    if aspect not in ("square", "pad"):
        raise UserError(f"unknown image aspect {aspect!r}: known are square and pad")
    try:
        image.load()
    except ValueError as error:
        raise UserError(f"a picture cannot be read: {error}") from None
    image = image if image.mode == "RGB" else image.convert("RGB")
    width, height = image.size
    if aspect == "pad":
        image = _padded_to_square(image, size)
    else:
        short, long = sorted((width, height))
        longer = int(size * long / short)
        image = image.resize((size, longer) if width <= height else (longer, size), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image)[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _padded_to_square(image: Image.Image, size: int) -> Image.Image:
    """What padding to a square of the longer side and resizing it gives, bit by bit, without ever holding that square.

    PIL resizes along the rows first, and each row by itself: so strips of rows are padded and resized, one by one.
    """
    (width, height), side = image.size, max(image.size)
    narrow = Image.new("RGB", (size, side), BACKGROUND)
    for top in range(0, height, STRIP):
        rows = min(STRIP, height - top)
        strip = Image.new("RGB", (side, rows), BACKGROUND)
        strip.paste(image.crop((0, top, width, top + rows)), ((side - width) // 2, 0))
        narrow.paste(strip.resize((size, rows), Image.Resampling.BICUBIC), (0, (side - height) // 2 + top))
    return narrow.resize((size, size), Image.Resampling.BICUBIC)


def decode(data: bytes, path: str) -> Image.Image:
    """RGB, read to the last byte, so that a broken file is found here."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(image, data, path)
            if image.mode == "P":
                image.info.pop("transparency", None)  # RGB has none, and PIL warns of losing it
            return image.convert("RGB")
    except BadImage:
        raise
    except Exception as error:  # decoders of untrusted bytes raise nearly anything: OSError, SyntaxError, struct.error
        raise BadImage(path, _reason(error)) from error


def _check(image: ImageFile.ImageFile, data: bytes, path: str) -> None:
    """What it would take to read the pixels, and whether they are all there: PIL leaves undefined what no strip of a
    TIFF holds."""
    short, long = sorted(image.size)
    most = MAX_WEBP if image.format == "WEBP" else MAX_PIXELS
    if image.format == "JPEG":
        most = min(most, MAX_SCANNED // max(data.count(b"\xff\xda"), 1))  # a marker that pixels never hold
    if short * long > most:
        raise BadImage(path, f"{image.width} x {image.height} pixels are more than {most:,}")
    if long > min(MAX_SIDE, MAX_RATIO * short):
        raise BadImage(path, f"{image.width} x {image.height} pixels are too long or too narrow")
    if image.tile and image.tile[0][0] in SLOW:
        raise BadImage(path, "written in a rare way that is slow to read: save it as PNG")
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if image.format == "TIFF" and covered < short * long:
        raise BadImage(path, "cannot be read: some of its pixels are missing")


def _reason(error: Exception) -> str:
    if "cannot identify image file" in str(error):
        return "not an image that can be read"  # PIL's sentence names an object in memory
    return f"cannot be read: {str(error) or type(error).__name__}"


def read_file(path: Path) -> bytes:
    """Of a file: a pipe would never end, and a device give anything."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    if status.st_size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"its {status.st_size:,} bytes are more than {MAX_BYTES:,}")
    return path.read_bytes()


class ImageFolder:
    """Image files below one folder; no path leads out of it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        if not self.folder.is_dir():
            raise UserError(f"the image folder {self.folder} does not exist")

    def read(self, path: str) -> bytes:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise BadImage(path, "the path leads out of the image folder")
        try:
            return read_file(self.folder / parts)
        except FileNotFoundError:
            raise BadImage(path, f"there is no such file in {self.folder}") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise BadImage(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def open(self, path: str) -> Image.Image:
        return decode(self.read(path), path)


class Records(ABC):
    """Rows by number, as dicts of LLaVA's format, and their images by the names that the rows give them.

    Pickled for other processes, it carries offsets, never rows.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises BadRow where the row is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} rows, and none is {index}")
        return self.row(index)

    def open(self, image: str) -> Image.Image:
        """Raises BadImage."""
        return decode(self.read(image), image)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> dict[str, Any]: ...

    @abstractmethod
    def read(self, image: str) -> bytes:
        """The file as it is; raises BadImage."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """File and row, for messages."""
