"""Pixels are those of transformers' PIL processors, bit by bit, and a bad image says which and why."""

import io
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from victor_jax.data.images import BACKGROUND, BadImage, ImageFolder, preprocess
from victor_jax.data.sources import open_source
from victor_jax.errors import UserError
from victor_jax.ops.images import normalise

SIZE = 42
EDGES = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
SIDES = [(97, 61), (61, 97), (64, 64), (SIZE, SIZE), (1, 40), (40, 1), (7, 5), (101, 100), (43, 42), (333, 17)]


def picture(width, height, mode="RGB", seed=0):
    """Smooth, with some noise, so that every filter and rounding shows."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)], axis=-1) * 90 + 128
    noise = np.random.default_rng(seed).normal(0, 25, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8)).convert(mode)


def ours(image, aspect):
    return np.asarray(normalise(preprocess(image, SIZE, aspect)))


def theirs(image, processor):
    return processor(image, return_tensors="np")["pixel_values"][0]


def assert_same(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("width", "height"), SIDES)
def test_square_is_the_clip_processor(width, height):
    image = picture(width, height)
    assert_same(ours(image, "square"), theirs(image, CLIPImageProcessorPil(**EDGES)))


@pytest.mark.parametrize(("width", "height"), SIDES)
def test_pad_is_the_llava_processor_with_padding(width, height):
    image = picture(width, height)
    assert_same(ours(image, "pad"), theirs(image, LlavaImageProcessorPil(do_pad=True, **EDGES)))


def test_the_full_size_is_equal_too():
    image = picture(640, 427)
    edges = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    for aspect, processor in (
        ("square", CLIPImageProcessorPil(**edges)),
        ("pad", LlavaImageProcessorPil(do_pad=True, **edges)),
    ):
        pixels = preprocess(image, 336, aspect)
        assert pixels.dtype == np.uint8
        assert_same(np.asarray(normalise(pixels)), theirs(image, processor))


def test_padding_is_the_mean_colour_on_both_sides():
    image = Image.new("RGB", (SIZE, SIZE // 3), (255, 0, 0))
    pixels = preprocess(image, SIZE, "pad")
    top = (SIZE - SIZE // 3) // 2
    for row in (0, top - 3, SIZE - 1):
        assert tuple(pixels[:, row, 5]) == BACKGROUND == (122, 116, 104)
    assert tuple(pixels[:, SIZE // 2, 5]) == (255, 0, 0)


def test_every_value_of_every_channel_is_normalised_alike():
    values = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 1, 1))
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    expected = processor(values, input_data_format="channels_first", return_tensors="np")["pixel_values"][0]
    assert_same(normalise(values), expected)
    assert_same(normalise(np.stack([values, values[:, ::-1]])[:, None])[1, 0], expected[:, ::-1])


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_other_modes_are_converted_as_the_processors_do(tmp_path, mode):
    image = Image.new("I;16", (50, 31), 300) if mode == "I;16" else picture(50, 31, mode)
    kind = "tiff" if mode in ("CMYK", "YCbCr", "I;16") else "png"
    image.save(tmp_path / f"x.{kind}")
    opened = ImageFolder(tmp_path).open(f"x.{kind}")
    assert opened.mode == "RGB"
    with Image.open(tmp_path / f"x.{kind}") as saved:
        expected = theirs(saved, CLIPImageProcessorPil(**EDGES))
    assert_same(ours(opened, "square"), expected)
    assert_same(ours(image, "square"), expected)


@pytest.mark.parametrize(
    ("mode", "key"), [("P", bytes(range(256))), ("P", 5), ("L", 128), ("RGB", (1, 2, 3)), ("RGBA", None), ("LA", None)]
)
def test_transparency_is_dropped(tmp_path, mode, key):
    """As LLaVA drops it; the processors of transformers 5 lay the picture on white. PIL must not warn of it."""
    colours = picture(50, 31, mode)
    saved = colours.copy()
    if key is None:
        saved.putalpha(picture(50, 31, "L", seed=1))
    saved.save(tmp_path / "x.png", **({} if key is None else {"transparency": key}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = ImageFolder(tmp_path).open("x.png")
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(colours.convert("RGB")))


def test_orientation_tags_are_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(50, 31).save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as saved:
        assert saved.getexif()[0x0112] == 6
    assert ImageFolder(tmp_path).open("x.jpg").size == (50, 31)


def test_an_unknown_aspect_is_refused():
    with pytest.raises(UserError, match="'stretch': known are square and pad"):
        preprocess(picture(8, 8), SIZE, "stretch")


def broken_files():
    buffer = io.BytesIO()
    picture(80, 60).save(buffer, "jpeg")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    picture(80, 60).save(buffer, "png")
    png = bytearray(buffer.getvalue())
    png[60:80] = bytes(20)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 700)).save(buffer, "png")
    return {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cannot be read: .*truncated"),
        "wrong.png": (bytes(png), "cannot be read"),
        "empty.jpg": (b"", "not an image that can be read"),
        "page.jpg": (b"<html>404</html>", "not an image that can be read"),
        "hair.png": (buffer.getvalue(), "3 x 700 pixels are too long or too narrow"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_image_says_which_and_why(tmp_path, name):
    data, reason = broken_files()[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadImage, match=f"image {name}: {reason}") as caught:
        ImageFolder(tmp_path).open(name)
    assert pickle.loads(pickle.dumps(caught.value)).path == name


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("coco/x.jpg", "no such file"),
        (".", "cannot be read"),
        ("x\0.jpg", "cannot be read"),
        ("../secret.png", "leads out of the image folder"),
        ("a/../../secret.png", "leads out of the image folder"),
        ("{outside}/secret.png", "leads out of the image folder"),
    ],
)
def test_a_path_without_an_image_of_the_folder_is_refused(tmp_path, path, reason):
    (tmp_path / "images" / "a").mkdir(parents=True)
    picture(8, 8).save(tmp_path / "secret.png")
    with pytest.raises(BadImage, match=reason):
        ImageFolder(tmp_path / "images").open(path.format(outside=tmp_path))


def test_a_source_goes_to_other_processes(tmp_path):
    picture(8, 9).save(tmp_path / "x.png")
    assert pickle.loads(pickle.dumps(ImageFolder(tmp_path))).open("x.png").size == (8, 9)


def test_the_folder_must_exist_and_may_be_left_out(tmp_path):
    with pytest.raises(UserError, match=r"image folder .* does not exist"):
        ImageFolder(tmp_path / "nowhere")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(BadImage, match="no image folder is set"):
        open_source(tmp_path / "a.jsonl").open("x.png")


@pytest.mark.parametrize(("width", "height"), [(700, 31), (31, 700), (640, 480), (300, 999)])
def test_padding_strip_by_strip_is_padding_the_whole_square(width, height):
    image = picture(width, height)
    for size in (SIZE, 336):
        edges = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        expected = theirs(image, LlavaImageProcessorPil(do_pad=True, **edges))
        assert_same(np.asarray(normalise(preprocess(image, size, "pad"))), expected)


def test_a_long_picture_is_padded_in_little_memory(tmp_path):
    """A few kilobytes of file: its square would take 300 MB."""
    Image.new("RGB", (10_000, 51)).save(tmp_path / "long.png")
    script = (
        "import resource, sys; from pathlib import Path; from victor_jax.data.images import decode, preprocess;"
        "data = Path(sys.argv[1]).read_bytes(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(preprocess(decode(data, 'x'), 336, 'pad').shape);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "long.png"], capture_output=True, text=True, check=True
    )
    shape, kilobytes = ran.stdout.splitlines()
    assert shape == "(3, 336, 336)"
    assert int(kilobytes) < 60_000


def test_a_picture_of_too_many_pixels_is_refused(tmp_path):
    Image.new("1", (7100, 7100)).save(tmp_path / "vast.png")
    with pytest.raises(BadImage, match=r"image vast.png: 7100 x 7100 pixels are more than 50,000,000"):
        ImageFolder(tmp_path).open("vast.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    (tmp_path / "vast.bmp").touch()
    os.truncate(tmp_path / "vast.bmp", 1 << 33)
    with pytest.raises(BadImage, match=r"image vast.bmp: cannot be read: its 8,589,934,592 bytes are more than"):
        ImageFolder(tmp_path).open("vast.bmp")


def test_the_scans_of_a_jpeg_count(tmp_path):
    """Each of them is a pass over all pixels."""
    file = io.BytesIO()
    Image.new("RGB", (500, 500)).save(file, "jpeg", progressive=True)
    scan = file.getvalue()[file.getvalue().rindex(b"\xff\xda") : -2]
    (tmp_path / "many.jpg").write_bytes(file.getvalue()[:-2] + 2000 * scan + file.getvalue()[-2:])
    with pytest.raises(BadImage, match=r"image many.jpg: 500 x 500 pixels are more than 149,"):
        ImageFolder(tmp_path).open("many.jpg")


def test_a_decoder_written_in_python_is_not_used(tmp_path):
    (tmp_path / "plain.ppm").write_text("P2 2 2 255 1 2 3 4")
    with pytest.raises(BadImage, match=r"image plain.ppm: written in a rare way that is slow to read"):
        ImageFolder(tmp_path).open("plain.ppm")


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match=r"image pipe.png: cannot be read: it is not a file"):
        ImageFolder(tmp_path).open("pipe.png")


def test_a_format_that_starts_programs_is_no_image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(BadImage, match=r"not an image that can be read"):
        ImageFolder(tmp_path).open("a.eps")


@pytest.mark.parametrize("path", ["a\x1b[2Jb.png", "a\ud800.png", "a\0.png"])
def test_a_path_that_a_terminal_would_obey_is_escaped(tmp_path, path):
    with pytest.raises(BadImage) as found:
        ImageFolder(tmp_path).open(path)
    assert str(found.value).startswith(f"image {path!a}: ")
    assert str(found.value).isprintable()
