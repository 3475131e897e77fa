"""Image intake: thousands of broken files, exact arithmetic, labels. The zoo (test_image_zoo.py) has the policy."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image, reduction_to
from pipelines.intake.jpeg_files import plain_jpeg_size
from pipelines.intake.labels import decode_labels, encode_labels_png
from tests.pipelines.zoo.writers import encoded, picture, png_of_rows, turned_for, with_right_checksums

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_plain_rgb_files_decode_without_notes(file_format: str) -> None:
    decoded = decode_image(encoded(Image.fromarray(picture()), file_format, quality=95))
    assert decoded.pixels_HW3.shape == (12, 20, 3)
    assert decoded.pixels_HW3.dtype == np.uint8
    assert np.abs(decoded.pixels_HW3.astype(int) - picture()).mean() < 6
    assert (decoded.source_height, decoded.source_width, decoded.source_mode) == (12, 20, "RGB")
    assert (decoded.orientation, decoded.notes) == (1, ())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    stored = np.ascontiguousarray(turned_for(orientation, picture()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(Image.fromarray(stored), file_format, exif=exif, lossless=True))
    assert np.array_equal(decoded.pixels_HW3, picture())
    assert (decoded.source_height, decoded.source_width) == stored.shape[:2]
    assert decoded.orientation == orientation


def test_sixteen_bit_gray_is_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65534, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"))
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(decoded.pixels_HW3, np.repeat(expected[..., None], 3, axis=2))
    assert decoded.source_mode == "I;16"
    assert "divided by 257" in decoded.notes[0]


def test_sixteen_bit_colour_is_within_one_level_of_division_by_257() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(">u2")
    decoded = decode_image(png_of_rows([row.tobytes() for row in values], width=5, bits=16, colour=2))
    assert np.abs(decoded.pixels_HW3 - values / 257).max() <= 1
    assert decoded.source_mode == "RGB;16"
    assert "high byte" in decoded.notes[0]


def test_budgets_are_the_callers() -> None:
    with pytest.raises(ImageError, match="over the budget of 100; cut it"):
        decode_image(encoded(Image.fromarray(picture()), "PNG"), max_pixels=100)
    with pytest.raises(ImageError, match="bytes, over the budget of 50"):
        decode_image(encoded(Image.fromarray(picture()), "PNG"), max_bytes=50)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 0.95])
def test_truncated_files_are_refused_even_where_another_package_allows_them(
    file_format: str, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    with pytest.raises(ImageError, match="truncated or broken") as caught:
        decode_image(data[: int(len(data) * fraction)])
    assert caught.value.stage == "decode"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "PNG with right checksums", "WEBP", "TIFF", "BMP", "GIF"])
def test_only_image_errors_come_out_of_broken_files(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(30, 40)), file_format.split()[0], exif=exif)
    random = np.random.default_rng(list(file_format.encode()))
    refused = 0
    for _ in range(250):
        broken = np.frombuffer(data, dtype=np.uint8).copy()
        places = random.integers(0, len(broken), random.integers(1, 8))
        broken[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
        if random.random() < 0.3:
            broken = broken[: random.integers(0, len(broken))]
        content = with_right_checksums(broken.tobytes()) if "checksums" in file_format else broken.tobytes()
        for decode in (
            lambda file: decode_image(file, max_pixels=10**6),
            lambda file: decode_labels(file, max_pixels=10**6),
        ):
            try:
                decode(content)
            except ImageError as error:
                assert error.stage in ("sniff", "validate", "decode")
                refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "settings",
    [
        {"quality": 90, "subsampling": 0},
        {"quality": 75, "subsampling": 1},
        {"quality": 30, "subsampling": 2},
        {"quality": 95, "subsampling": 2, "progressive": True},
        {"quality": 85, "optimize": True, "restart_marker_rows": 1},
        {"quality": 100, "keep_rgb": True},
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (121, 250)])
def test_simplejpegs_pixels_are_pillows(settings: dict[str, Any], size: tuple[int, int]) -> None:
    height, width = size
    coarse_hw3 = np.random.default_rng(width).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse_hw3).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", **settings)
    decoded = decode_image(file.getvalue())
    assert np.array_equal(decoded.pixels_HW3, np.asarray(Image.open(file).convert("RGB")))
    assert decoded.pixels_HW3.flags.writeable == ("keep_rgb" not in settings), "Pillow's own array cannot be written to"


def photo(height: int, width: int, file_format: str = "JPEG", **settings: Any) -> bytes:
    """Soft shapes, as a camera sees them."""
    coarse_hw3 = np.random.default_rng(height).integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    return encoded(
        Image.fromarray(coarse_hw3).resize((width, height), Image.Resampling.BICUBIC), file_format, **settings
    )


@pytest.mark.parametrize(
    ("height", "width", "by"), [(255, 900, 2), (254, 900, 1), (509, 509, 4), (508, 509, 2), (3000, 1021, 8), (9, 9, 1)]
)
def test_a_picture_is_reduced_to_no_less_than_was_asked_for(height: int, width: int, by: int) -> None:
    assert reduction_to(height, width, min_side=128) == by
    decoded = decode_image(photo(height, width), min_side=128)
    assert decoded.reduction == by
    assert decoded.pixels_HW3.shape == (-(-height // by), -(-width // by), 3)
    assert (decoded.height, decoded.width) == (decoded.source_height, decoded.source_width) == (height, width)


@pytest.mark.parametrize("settings", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_a_reduced_jpeg_shows_the_mean_of_its_pixels(settings: dict[str, Any]) -> None:
    file = photo(300, 512, quality=90, **settings)
    reduced_hw3 = decode_image(file, min_side=150).pixels_HW3.astype(int)
    whole_HW3 = decode_image(file).pixels_HW3
    means_hw3 = whole_HW3.reshape(150, 2, 256, 2, 3).mean(axis=(1, 3))
    assert np.abs(reduced_hw3 - means_hw3).mean() < 1.0


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_what_cannot_be_reduced_is_decoded_as_it_is(file_format: str) -> None:
    decoded = decode_image(photo(300, 512, file_format), min_side=20)
    assert (decoded.reduction, decoded.pixels_HW3.shape) == (1, (300, 512, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(photo(300, 512, exif=exif), min_side=20)
    assert (turned.reduction, turned.pixels_HW3.shape, turned.height, turned.width) == (1, (512, 300, 3), 512, 300)


def test_a_reduced_look_refuses_the_files_that_a_whole_one_refuses() -> None:
    whole, random = photo(300, 300, quality=80), np.random.default_rng(0)
    refused = 0
    for place in range(20, len(whole), len(whole) // 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        for broken in (whole[:place], bytes(flipped)):
            outcomes = []
            for min_side in (None, 30):
                try:
                    decode_image(broken, min_side=min_side)
                    outcomes.append("decoded")
                except ImageError as error:
                    outcomes.append(error.stage)
            assert outcomes[0] == outcomes[1], place
            refused += outcomes[0] != "decoded"
    assert refused > 150


def outcome(data: bytes) -> tuple[object, ...]:
    try:
        image = decode_image(data)
    except ImageError as error:
        return error.stage, str(error)
    facts = (image.height, image.width, image.source_mode, image.orientation, image.notes)
    return image.pixels_HW3.tobytes(), *facts


def jpegs_of_all_kinds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    settings: list[dict[str, Any]] = [
        {},
        {"progressive": True},
        {"restart_marker_rows": 1, "comment": b"a text"},
        {"icc_profile": profile},
        {"exif": exif},
        {"xmp": b"<x:xmpmeta/>"},
        {"keep_rgb": True},
    ]
    plain = Image.open(io.BytesIO(photo(77, 133)))
    files = [photo(77, 133, **one) for one in settings]
    return [*files, *(encoded(plain.convert(mode), "JPEG") for mode in ("L", "CMYK"))]


def test_a_jpeg_is_to_our_reading_of_its_header_what_it_is_to_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    files = jpegs_of_all_kinds()
    assert [plain_jpeg_size(file) for file in files] == [(77, 133)] * 4 + [None] * 5
    for whole in list(files):
        header = whole.index(b"\xff\xda")
        for _ in range(60):
            file = bytearray(whole)
            file[int(random.integers(header))] = random.choice([0, 3, 17, 0xC0, 0xC2, 0xE0, 0xE1, 0xFF, 0x55])
            files.append(bytes(file))
        files += [whole[:place] for place in range(1, header + 20, 29)]
    ours = [outcome(file) for file in files]
    assert 200 < sum(len(facts) == 2 for facts in ours) < len(files) - 200, "some are refused, and some not"
    monkeypatch.setattr("pipelines.intake.images.plain_jpeg_size", lambda _: None)
    assert ours == [outcome(file) for file in files]


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_kornias_levels_of_a_label_are_pillows(level: int) -> None:
    labels_HW = np.random.default_rng(level).integers(0, 256, (9, 7), dtype=np.uint8).repeat(11, 0).repeat(13, 1)
    file = io.BytesIO()
    Image.fromarray(labels_HW).save(file, "PNG", compress_level=level)
    decoded_HW = decode_labels(file.getvalue())
    assert np.array_equal(decoded_HW, labels_HW) and decoded_HW.flags.writeable


def test_image_error_survives_pickle() -> None:
    error = pickle.loads(pickle.dumps(ImageError("what went wrong", "decode")))
    assert isinstance(error, ImageError)
    assert (str(error), error.stage) == ("what went wrong", "decode")


def test_threads_decode_the_same() -> None:
    files = [encoded(Image.fromarray(picture(30 + i, 40)), file_format) for i in range(4) for file_format in LOSSLESS]
    alone = [decode_image(file).pixels_HW3 for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: decode_image(file).pixels_HW3, files * 5))
    assert all(np.array_equal(one, alone[i % len(files)]) for i, one in enumerate(together))


@pytest.mark.parametrize("file_format", LOSSLESS)
def test_palette_labels_keep_their_indices(file_format: str) -> None:
    labels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image = Image.fromarray(labels).convert("P")
    image.putpalette(list(np.random.default_rng(0).permutation(768) % 256))
    assert np.array_equal(decode_labels(encoded(image, file_format)), labels)


def test_gray_labels_keep_their_values() -> None:
    eight = np.array([[0, 7, 255]], dtype=np.uint8)
    assert np.array_equal(decode_labels(encoded(Image.fromarray(eight), "PNG")), eight)
    sixteen = np.array([[0, 300, 65535]], dtype=np.uint16)
    decoded = decode_labels(encoded(Image.fromarray(sixteen), "PNG"))
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, sixteen)
    assert decode_labels(encoded(Image.fromarray(np.array([[True, False]])), "PNG")).tolist() == [[1, 0]]


@pytest.mark.parametrize(("bits", "row", "values"), [(4, b"\x01\x2f", [0, 1, 2, 15]), (2, b"\x1b", [0, 1, 2, 3])])
def test_labels_of_few_gray_bits_are_not_spread_over_255(bits: int, row: bytes, values: list[int]) -> None:
    assert decode_labels(png_of_rows([row], width=4, bits=bits, colour=0)).tolist() == [values]


def test_colour_labels_are_refused_with_the_way_to_convert_them() -> None:
    for mode in ("RGB", "RGBA"):
        with pytest.raises(ImageError, match=f"mode {mode}, expected one channel.*argmax") as caught:
            decode_labels(encoded(Image.new(mode, (3, 3)), "PNG"))
        assert caught.value.stage == "validate"


def test_lossy_and_turned_labels_are_refused() -> None:
    for file_format in ("JPEG", "WEBP"):
        with pytest.raises(ImageError, match=f"is a {file_format}, whose compression changes class values"):
            decode_labels(encoded(Image.new("L", (8, 8)), file_format))
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(ImageError, match="carries orientation 6"):
        decode_labels(encoded(Image.new("L", (8, 8)), "PNG", exif=exif))


def test_labels_survive_encoding_and_bytes_are_equal() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8)
    assert np.array_equal(decode_labels(encode_labels_png(labels)), labels)
    assert encode_labels_png(labels) == encode_labels_png(labels.copy(order="F"))
    with pytest.raises(ValueError, match="expected uint8"):
        encode_labels_png(labels.astype(np.int64))
