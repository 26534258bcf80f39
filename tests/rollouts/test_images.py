"""Images are checked when they are read, and every reader gets the same pixels."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rl.errors import TaskError
from rl.types import EncodedImage
from rollouts.images import encode, read_image, read_image_file

MAX_PIXELS = 10_000


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def read(content: bytes) -> EncodedImage:
    return read_image(content, source="a.img", max_pixels=MAX_PIXELS)


def pixels(content: bytes) -> list[object]:
    """What Pillow alone makes of an encoded image, as RGB."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).tolist()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_declared_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_plain_image_keeps_its_bytes(format: str, mode: str) -> None:
    content = encoded(noise().convert(mode), format)
    image = read(content)
    assert image.content is content
    assert (image.width, image.height, image.source) == (40, 30, "a.img")
    assert np.asarray(image.decode()).tolist() == pixels(content)


@pytest.mark.parametrize("format", ["BMP", "GIF", "TIFF", "WEBP"])
def test_other_formats_become_a_png_of_the_same_pixels(format: str) -> None:
    content = encoded(noise(), format)
    image = read(content)
    assert image.content.startswith(b"\x89PNG")
    assert np.asarray(image.decode()).tolist() == pixels(content)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_exif_orientation_is_applied_once_and_for_all(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns the picture clockwise by 90 degrees
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 40, 10))  # the top half is white: turned clockwise, the right half
    image = read(encoded(picture, format, exif=exif))
    shown = np.asarray(image.decode())
    assert (image.width, image.height) == (20, 40) == image.decode().size
    assert shown[:, 14:].min() > 250 and shown[:, :6].max() < 5
    assert read(image.content).content == image.content


def test_transparency_is_laid_over_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 255, 0))  # a hidden blue
    assert pixels(read(encoded(picture, "PNG")).content) == [[[255, 0, 0], [255, 255, 255]]]


def test_a_palette_with_a_transparent_colour_is_laid_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert pixels(read(encoded(picture, "PNG", transparency=0)).content) == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize(
    ("dtype", "format"), [("uint16", "PNG"), ("uint16", "TIFF"), ("int32", "TIFF"), ("float32", "TIFF")]
)
def test_deep_greyscale_is_stretched_over_its_own_range(dtype: str, format: str) -> None:
    # 1000 + 0 → 0, 1000 + 4095 → 255, 1000 + 4095 / 3 → 85; Pillow's own conversion would clip all three to white
    deep = Image.fromarray(np.array([[1000, 2365, 5095]], dtype=dtype))
    assert pixels(read(encoded(deep, format)).content) == [[[0, 0, 0], [85, 85, 85], [255, 255, 255]]]


def test_deep_greyscale_of_one_value_is_black() -> None:
    deep = Image.fromarray(np.full((2, 2), 700, dtype=np.uint16))
    assert np.asarray(read(encoded(deep, "PNG")).decode()).max() == 0


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    image = read(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(image.decode()).reshape(-1, 3).mean(axis=0)
    assert red > 250 and green < 5 and blue < 5


def test_decoding_twice_gives_the_same_pixels() -> None:
    image = encode(noise())
    assert image.decode() == image.decode()
    assert read(image.content).sha256 == image.sha256


def test_a_huge_image_is_refused_by_its_header() -> None:
    with pytest.raises(TaskError, match=r"a\.img is too large: 101 x 100 = 10,100 pixels; at most 10,000"):
        read(png_of_declared_size(101, 100))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(TaskError, match=r"a\.img is too large.*tasks\.max_image_pixels"):
        read(png_of_declared_size(60_000, 60_000))


def test_the_largest_allowed_image_is_read() -> None:
    assert read(encoded(Image.new("RGB", (100, 100)), "PNG")).width == 100


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_truncated_image_is_corrupt(format: str, kept: float) -> None:
    content = encoded(noise(), format)
    with pytest.raises(TaskError, match=r"image a\.img is (corrupt or truncated|not an image)"):
        read(content[: int(len(content) * kept)])


def test_a_png_with_a_flipped_bit_is_corrupt() -> None:
    content = bytearray(encoded(noise(), "PNG"))
    content[len(content) // 2] ^= 1
    with pytest.raises(TaskError, match="corrupt or truncated"):
        read(bytes(content))


def test_what_is_no_image_names_the_known_formats() -> None:
    with pytest.raises(TaskError, match=r"not an image of a known format; known are BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(TaskError, match=r"a\.img is empty \(0 bytes\)"):
        read(b"")


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_an_image_of_several_frames_is_refused(format: str) -> None:
    other = Image.new("RGB", (40, 30))
    with pytest.raises(TaskError, match=r"has 2 frames; give each its own file"):
        read(encoded(noise(), format, save_all=True, append_images=[other]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gone\.png cannot be read: No such file"):
        read_image_file(tmp_path / "gone.png", max_pixels=MAX_PIXELS)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        read_image_file(tmp_path, max_pixels=MAX_PIXELS)


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(TaskError, match="null byte"):
        read_image_file(Path("a\0b.png"), max_pixels=MAX_PIXELS)


def test_a_file_too_long_for_any_allowed_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.truncate(3 << 20)  # 10,000 pixels need 160,000 bytes and a margin of 1 MiB
    with pytest.raises(TaskError, match=r"long\.png is too large: 3,145,728 bytes"):
        read_image_file(path, max_pixels=MAX_PIXELS)


def test_damaged_bytes_are_either_refused_or_decode_to_the_promised_size() -> None:
    rng = random.Random(0)
    originals = [encoded(noise(), format) for format in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")]
    refused = 0
    for _ in range(600):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 3, 20))):
            content[rng.randrange(min(len(content), 300))] = rng.randrange(256)
        try:
            image = read(bytes(content))
        except TaskError:
            refused += 1
        else:
            assert image.decode().size == (image.width, image.height)
    assert 0 < refused < 600
