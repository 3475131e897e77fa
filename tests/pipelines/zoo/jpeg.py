"""Odd JPEG files."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pipelines.zoo.specimen import Specimen, gray_as_rgb, one_colour
from tests.pipelines.zoo.writers import cmyk_profile, encoded, exif_of, picture, turned_for, with_bytes

HEIGHT, WIDTH = 48, 64
PICTURE = picture(HEIGHT, WIDTH)
IMAGE = Image.fromarray(PICTURE)
PLAIN = encoded(IMAGE, "JPEG", quality=95)
NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)), "JPEG")
SCAN = PLAIN.index(b"\xff\xda") + 14
"""Where the compressed pixels begin: marker, then a header of 12 bytes for three components."""

SIZE = PLAIN.index(b"\xff\xc0") + 5  # marker, length, bits per sample; then height and width
CLOSE = 3.0  # levels, for a smooth picture at quality 95

ORIENTED = tuple(range(1, 9))

# Arithmetic coding, which Pillow does not write: `jpegtran -arithmetic` of what Pillow writes for these two pictures at
# quality 50. The first shows picture(16, 24), the second 16 x 16 pixels of gray 70.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AHgMoPU35kQsyiwdAEoR3kRRftDU"
    "rJk6osQDjqguvJ50Yuun9kGg/9k="
)
ARITHMETIC_GRAY = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/yQALCAAQABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wAr4P/Z"
)


def jpeg_specimens() -> Iterator[Specimen]:
    """All of them."""
    yield from _sound()
    yield from _colour_spaces()
    yield from _exif()
    yield from _truncated()
    yield from _headers()


def _sound() -> Iterator[Specimen]:
    expected: dict[str, Any] = {"pixels_HW3": PICTURE, "tolerance": CLOSE}
    yield Specimen(name="plain.jpg", data=PLAIN, **expected)
    yield Specimen(name="jpeg named.png", data=PLAIN, **expected)
    yield Specimen(name="jpeg without ending", data=PLAIN, **expected)
    progressive = encoded(IMAGE, "JPEG", quality=95, progressive=True)
    yield Specimen(name="progressive.jpg", data=progressive, **expected)
    restarts = encoded(IMAGE, "JPEG", quality=95, restart_marker_blocks=2)
    yield Specimen(name="restart markers.jpg", data=restarts, **expected)
    yield Specimen(name="subsampled.jpg", data=encoded(IMAGE, "JPEG", quality=95, subsampling=2), **expected)
    yield Specimen(name="zip behind jpeg.jpg", data=PLAIN + b"PK\x03\x04 and so on", **expected)
    yield Specimen(name="noise behind jpeg.jpg", data=PLAIN + NOISE[100:400], **expected)
    yield Specimen(name="arithmetic.jpg", data=ARITHMETIC, pixels_HW3=picture(16, 24), tolerance=8.0)
    yield Specimen(
        name="arithmetic, one gray.jpg",
        data=ARITHMETIC_GRAY,
        mode="L",
        notes=("mode L was converted to RGB",),
        pixels_HW3=one_colour((70, 70, 70), height=16, width=16),
        tolerance=1.0,
    )
    black = Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 0))
    yield Specimen(
        name="one colour.jpg",
        data=encoded(black, "JPEG"),
        pixels_HW3=one_colour((0, 0, 0), height=HEIGHT, width=WIDTH),
    )
    yield Specimen(
        name="one pixel.jpg",
        data=encoded(Image.new("RGB", (1, 1), (9, 99, 199)), "JPEG", quality=95),
        pixels_HW3=one_colour((9, 99, 199), height=1, width=1),
        tolerance=CLOSE,
    )
    green = Image.new("RGB", (WIDTH, HEIGHT), (0, 255, 0))
    yield Specimen(
        name="several pictures.mpo",
        data=encoded(IMAGE, "MPO", save_all=True, append_images=[green], quality=95),
        notes=("the first of several pictures (MPO) was taken",),
        **expected,
    )
    flipped = bytes(byte ^ (0x10 if SCAN + 200 <= place < SCAN + 203 else 0) for place, byte in enumerate(NOISE))
    yield Specimen(name="flipped bits.jpg", data=flipped)  # JPEG has no checksum


def _colour_spaces() -> Iterator[Specimen]:
    gray = IMAGE.convert("L")
    yield Specimen(
        name="gray.jpg",
        data=encoded(gray, "JPEG", quality=95),
        mode="L",
        notes=("mode L was converted to RGB",),
        pixels_HW3=gray_as_rgb(np.asarray(gray)),
        tolerance=CLOSE,
    )
    red_ink = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    red = one_colour((255, 0, 0), height=HEIGHT, width=WIDTH)
    yield Specimen(
        name="cmyk.jpg",
        data=encoded(red_ink, "JPEG", quality=95),
        mode="CMYK",
        notes=("CMYK was converted without an ICC profile",),
        pixels_HW3=red,
        tolerance=CLOSE,
    )
    yield Specimen(
        name="cmyk with profile.jpg",
        data=encoded(red_ink, "JPEG", quality=95, icc_profile=cmyk_profile()),
        mode="CMYK",
        notes=("CMYK was converted through its ICC profile",),
        # Magenta and yellow take half of the light: Lab L* 50, which is 119 in sRGB (IEC 61966-2-1).
        pixels_HW3=one_colour((119, 119, 119), height=HEIGHT, width=WIDTH),
        tolerance=CLOSE,
    )
    of_rgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("of rgb", of_rgb), ("broken", cmyk_profile()[:200])):
        yield Specimen(
            name=f"cmyk with profile {name}.jpg",
            data=encoded(red_ink, "JPEG", quality=95, icc_profile=profile),
            mode="CMYK",
            notes=("the ICC profile could not be used",),
            pixels_HW3=red,
            tolerance=CLOSE,
        )
    # Stored inverted, the four inks are 160, 153, 53, 255: luma, both chromas and black of the inverse of this red.
    coded = encoded(Image.new("CMYK", (WIDTH, HEIGHT), (95, 102, 202, 0)), "JPEG", quality=95)
    yield Specimen(
        name="ycck.jpg",
        data=with_bytes(coded, coded.index(b"Adobe") + 11, b"\x02"),
        mode="CMYK",
        notes=("CMYK was converted without an ICC profile",),
        pixels_HW3=one_colour((200, 50, 50), height=HEIGHT, width=WIDTH),
        tolerance=CLOSE,
    )


def _exif() -> Iterator[Specimen]:
    for orientation in ORIENTED:
        stored = Image.fromarray(np.ascontiguousarray(turned_for(orientation, PICTURE)))
        yield Specimen(
            name=f"orientation {orientation}.jpg",
            data=encoded(stored, "JPEG", quality=95, exif=exif_of(orientation)),
            orientation=orientation,
            notes=() if orientation == 1 else (f"EXIF orientation {orientation} was applied",),
            pixels_HW3=PICTURE,
            tolerance=CLOSE,
        )
    for orientation in (0, 9):
        yield Specimen(
            name=f"orientation {orientation}.jpg",
            data=encoded(IMAGE, "JPEG", quality=95, exif=exif_of(orientation)),
            notes=(f"EXIF orientation {orientation} is not in 1..8 and was ignored",),
            pixels_HW3=PICTURE,
            tolerance=CLOSE,
        )
    broken = {
        "empty": (b"", ()),
        "nonsense": (b"nonsense", ("EXIF is broken and was ignored",)),
        "far offset": (b"II*\x00\xff\xff\xff\x7f", ()),
        "cut": (b"MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12", ()),
    }
    for name, (body, notes) in broken.items():
        yield Specimen(
            name=f"exif {name}.jpg",
            data=encoded(IMAGE, "JPEG", quality=95, exif=b"Exif\0\0" + body),
            notes=notes,
            pixels_HW3=PICTURE,
            tolerance=CLOSE,
        )


def _truncated() -> Iterator[Specimen]:
    yield Specimen(name="two bytes.jpg", data=PLAIN[:2], stage="sniff", message="begins with")
    for kept in (3, 20, SCAN - 300, SCAN, SCAN + 40, len(PLAIN) // 2, len(PLAIN) * 9 // 10, len(PLAIN) - 2):
        yield Specimen(
            name=f"first {kept} bytes.jpg",
            data=PLAIN[:kept],
            stage="decode",
            message="the JPEG file is truncated or broken",
        )
    thumbnail = exif_of(1) + encoded(IMAGE.resize((16, 12)), "JPEG")  # with an end marker of its own
    with_thumbnail = encoded(IMAGE, "JPEG", quality=95, exif=thumbnail)
    yield Specimen(
        name="thumbnail.jpg",
        data=with_thumbnail,
        pixels_HW3=PICTURE,
        tolerance=CLOSE,
    )
    yield Specimen(
        name="thumbnail and no end.jpg",
        data=with_thumbnail[:-2],
        stage="decode",
        message="the JPEG file is truncated or broken",
    )
    yield Specimen(
        name="second half never written.jpg",
        data=PLAIN[: len(PLAIN) // 2] + bytes(len(PLAIN) - len(PLAIN) // 2),
        stage="decode",
        message="the JPEG file is truncated or broken",
    )
    for name, data, scan in (("smooth", PLAIN, SCAN), ("noise", NOISE, NOISE.index(b"\xff\xda") + 14)):
        yield Specimen(
            name=f"cut and closed again, {name}.jpg",
            data=data[: scan + (len(data) - scan) // 2] + b"\xff\xd9",
            stage="decode",
            message="its data stop before its end marker",
        )
    yield Specimen(
        name="zeros of a jpeg's size.jpg",
        data=bytes(len(PLAIN)),
        stage="sniff",
        message="nothing but zero bytes",
    )


def _headers() -> Iterator[Specimen]:
    yield Specimen(
        name="65500 x 65500.jpg",
        data=with_bytes(PLAIN, SIZE, b"\xff\xdc\xff\xdc"),
        stage="validate",
        message="65500 x 65500 = 4290250000 pixels, over the budget",
    )
    yield Specimen(
        name="no rows.jpg",
        data=with_bytes(PLAIN, SIZE, b"\x00\x00"),
        stage="decode",
        message="truncated or broken",
    )
    yield Specimen(
        name="12 bits.jpg",
        data=with_bytes(PLAIN, SIZE - 1, b"\x0c"),
        stage="validate",
        message="variant that is not supported .cannot handle 12-bit",
    )
