"""A client's picture: told by its header, decoded, turned upright and fitted to the clip; and a picture for a client.

Runs in a thread of its own, never on the event loop. Knows nothing of models.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageOps

from halfreel_runtime.errors import InvalidArgument, Violation

MAX_IMAGE_BYTES = 10 * 1024 * 1024
MAX_IMAGE_PIXELS = 16_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")


def decode_picture(data: bytes, width_px: int, height_px: int) -> Image.Image:
    """Decodes a PNG, JPEG or WebP picture and fits it to the clip.

    It is turned upright by its EXIF orientation, laid on white where it is transparent, cut to the clip's shape around
    its middle, and scaled. Its size is read from its header and checked before a pixel is decoded.

    Args:
        data: the file's bytes.
        width_px: the clip's width.
        height_px: the clip's height.

    Returns:
        An RGB picture of exactly `width_px` x `height_px`.

    Raises:
        InvalidArgument: IMAGE_INVALID; the picture is too large, of another format, animated or damaged.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise _invalid(f"image has {len(data)} bytes; it may have at most {MAX_IMAGE_BYTES}")
    _check_pixel_count(*(_webp_size(data) or (0, 0)))
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _invalid(f"image has more than {MAX_IMAGE_PIXELS} pixels by its header") from None
    except Exception:
        raise _invalid("image is not a PNG, JPEG or WebP picture, or its header is damaged") from None
    with picture:
        _check_pixel_count(*picture.size)
        # A JPEG of a phone may hold a second picture (a depth or gain map); that is no animation.
        if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
            raise _invalid("image is animated; send one still picture")
        try:
            upright = _flat_rgb(ImageOps.exif_transpose(picture))
        except Exception:  # Pillow raises many kinds of exceptions on a damaged file
            raise _invalid("image is damaged or cut short; send the whole file") from None
    return ImageOps.fit(upright, (width_px, height_px), Image.Resampling.LANCZOS)


def encode_picture(picture: Image.Image) -> bytes:
    """A picture as a PNG, which loses nothing: `decode_picture` gives its pixels back."""
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return written.getvalue()


def _flat_rgb(picture: Image.Image) -> Image.Image:
    """Decodes a picture to RGB, on white where it is transparent."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return picture.convert("RGB")


def _check_pixel_count(width_px: int, height_px: int) -> None:
    if width_px * height_px > MAX_IMAGE_PIXELS:
        raise _invalid(
            f"image is {width_px} x {height_px} = {width_px * height_px} pixels by its header; "
            f"it may have at most {MAX_IMAGE_PIXELS}"
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Reads a WebP's size from its header, since Pillow allocates a WebP's canvas when it opens it.

    Source: https://developers.google.com/speed/webp/docs/riff_container (VP8X) and RFC 9649, sections 2.5 to 2.7.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _invalid(description: str) -> InvalidArgument:
    return InvalidArgument(description, reason="IMAGE_INVALID", violations=[Violation("image", description)])
