"""Image intake: a zoo of files, the policy for each, and thousands of broken ones."""

import io
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from pipelines.images import ImageError, decode_image, decode_labels, encode_labels_png

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")


def picture(height: int = 12, width: int = 20) -> NDArray[np.uint8]:
    """Smooth colours, so that lossy formats stay close, with no symmetry that would hide a turn."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 4], axis=2).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_of_rows(rows: list[bytes], *, width: int, bits: int, colour: int) -> bytes:
    """A PNG written by hand, for bit depths that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_plain_rgb_files_decode_without_notes(file_format: str) -> None:
    decoded = decode_image(encoded(Image.fromarray(picture()), file_format, quality=95))
    assert decoded.pixels_HW3.shape == (12, 20, 3)
    assert decoded.pixels_HW3.dtype == np.uint8
    assert np.abs(decoded.pixels_HW3.astype(int) - picture()).mean() < 6
    assert (decoded.source_height, decoded.source_width, decoded.source_mode) == (12, 20, "RGB")
    assert (decoded.orientation, decoded.notes) == (1, ())


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_jpeg"])
def test_compressed_tiff_decodes(compression: str) -> None:
    decoded = decode_image(encoded(Image.fromarray(picture()), "TIFF", compression=compression))
    assert np.abs(decoded.pixels_HW3.astype(int) - picture()).mean() < 6


def turned_for(orientation: int, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a camera stores for `upright` under an orientation, after the table of the EXIF standard (tag 0x0112):
    "the 0th row of the stored picture is the ... of the upright one, its 0th column the ..."."""
    return {
        1: upright,  # row 0 = top, column 0 = left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


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


def test_exif_orientation_of_jpeg_is_applied_and_noted() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encoded(Image.fromarray(picture()), "JPEG", exif=exif))
    assert decoded.pixels_HW3.shape == (20, 12, 3)
    assert decoded.notes == ("EXIF orientation 6 was applied",)


@pytest.mark.parametrize("value", [0, 9, 4711])
def test_unknown_orientation_counts_as_upright_and_is_noted(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    decoded = decode_image(encoded(Image.fromarray(picture()), "PNG", exif=exif))
    assert decoded.orientation == 1
    assert np.array_equal(decoded.pixels_HW3, picture())
    assert "not in 1..8" in decoded.notes[0]


# Pillow's warning is ignored by pipelines.images at import, but pytest installs its own filters for every test.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"II*\x00\xff\xff\xff\x7f", b"MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12"]
)
def test_broken_exif_costs_the_orientation_not_the_image(body: bytes) -> None:
    decoded = decode_image(encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0" + body))
    assert decoded.pixels_HW3.shape == (12, 20, 3)
    assert decoded.orientation == 1


def test_sixteen_bit_gray_is_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65534, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"))
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(decoded.pixels_HW3, np.repeat(expected[..., None], 3, axis=2))
    assert decoded.source_mode == "I;16"
    assert "divided by 257" in decoded.notes[0]


def test_sixteen_bit_tiff_of_both_byte_orders_agree() -> None:
    values = (np.arange(40, dtype=np.uint16) * 1500).reshape(5, 8)
    little = decode_image(encoded(Image.fromarray(values), "TIFF")).pixels_HW3
    big_file = encoded(Image.frombytes("I;16B", (8, 5), values.astype(">u2").tobytes()), "TIFF")
    assert np.array_equal(little[..., 0], np.round(values / 257))
    assert np.array_equal(decode_image(big_file).pixels_HW3, little)


def test_sixteen_bit_colour_is_within_one_level_of_division_by_257() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(">u2")
    decoded = decode_image(png_of_rows([row.tobytes() for row in values], width=5, bits=16, colour=2))
    assert np.abs(decoded.pixels_HW3 - values / 257).max() <= 1
    assert decoded.source_mode == "RGB;16"
    assert "high byte" in decoded.notes[0]


def test_integers_beyond_16_bits_and_floats_are_refused() -> None:
    too_large = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(ImageError, match="from 0 to 70000 .* do not fit 16 bits") as caught:
        decode_image(encoded(too_large, "TIFF"))
    assert caught.value.stage == "validate"
    with pytest.raises(ImageError, match="mode F have no agreed range") as caught:
        decode_image(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))
    assert caught.value.stage == "validate"


def test_palette_gray_and_one_bit_become_rgb() -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(encoded(palette, "PNG")).pixels_HW3.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    gray = decode_image(encoded(Image.fromarray(np.array([[7, 200]], dtype=np.uint8)), "PNG"))
    assert gray.pixels_HW3.tolist() == [[[7] * 3, [200] * 3]]
    one_bit = decode_image(encoded(Image.fromarray(np.array([[True, False]])), "PNG"))
    assert one_bit.pixels_HW3.tolist() == [[[255] * 3, [0] * 3]]
    assert one_bit.notes == ("mode 1 was converted to RGB",)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(rgba), "PNG"))
    assert decoded.pixels_HW3.tolist() == [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]  # 255 * (1 - 51/255)
    assert decoded.notes == ("transparency was laid over white",)
    gray_alpha = Image.fromarray(np.array([[[9, 0], [9, 255]]], dtype=np.uint8), "LA")
    assert decode_image(encoded(gray_alpha, "PNG")).pixels_HW3.tolist() == [[[255] * 3, [9] * 3]]


def test_transparent_palette_entry_and_transparent_colour_are_laid_over_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    by_index = decode_image(encoded(palette, "PNG", transparency=1))
    assert by_index.pixels_HW3.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    by_colour = decode_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert by_colour.pixels_HW3.tolist() == [[[255, 255, 255]]]


def test_cmyk_is_converted_by_the_plain_formula_without_a_profile() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    decoded = decode_image(encoded(cmyk, "TIFF"))
    assert decoded.pixels_HW3[0, 0].tolist() == [255, 0, 0]
    assert decoded.notes == ("CMYK was converted without an ICC profile",)
    through_jpeg = decode_image(encoded(cmyk, "JPEG", quality=100)).pixels_HW3[4, 4]
    assert np.abs(through_jpeg.astype(int) - [255, 0, 0]).max() <= 3


def test_cmyk_profile_is_used_where_it_fits_and_dropped_with_a_note_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # an RGB profile on CMYK pixels
    data = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", icc_profile=wrong)
    decoded = decode_image(data)
    assert decoded.pixels_HW3[0, 0].tolist() == [255, 0, 0]
    assert "profile could not be used" in decoded.notes[0]

    def convert(image: Image.Image, source: object, target: object, outputMode: str) -> Image.Image:
        return Image.new(outputMode, image.size, (1, 2, 3))

    # A CMYK profile is copyrighted and large, so that its use is shown on a stand-in of lcms.
    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    assert decode_image(data).pixels_HW3[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_of_several_frames_is_taken_and_noted(file_format: str) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    decoded = decode_image(encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True))
    assert decoded.pixels_HW3[0, 0].tolist() == [255, 0, 0]
    assert "the first of several frames was taken" in decoded.notes


@pytest.mark.parametrize("data", [b"", b"<html>403 Forbidden</html>", b"%PDF-1.7", b"PK\x03\x04", b"RIFF\0\0\0\0WAVE"])
def test_files_that_are_no_images_fail_at_sniff(data: bytes) -> None:
    with pytest.raises(ImageError, match="empty|not an image") as caught:
        decode_image(data)
    assert caught.value.stage == "sniff"


def test_budgets_are_checked_before_decoding() -> None:
    # The header promises 60000 x 60000 pixels, the body holds none: decoding would fail otherwise than the budget.
    bomb = png_of_rows([], width=60000, bits=8, colour=2)
    bomb = bomb[:20] + struct.pack(">I", 60000) + bomb[24:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    with pytest.raises(ImageError, match="60000 x 60000 = 3600000000 pixels, over the budget of 134217728") as caught:
        decode_image(bomb)
    assert caught.value.stage == "validate"
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
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_only_image_errors_come_out_of_broken_files(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(30, 40)), file_format, exif=exif)
    random = np.random.default_rng(list(file_format.encode()))
    refused = 0
    for _ in range(250):
        broken = np.frombuffer(data, dtype=np.uint8).copy()
        places = random.integers(0, len(broken), random.integers(1, 8))
        broken[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
        if random.random() < 0.3:
            broken = broken[: random.integers(0, len(broken))]
        for decode in (
            lambda file: decode_image(file, max_pixels=10**6),
            lambda file: decode_labels(file, max_pixels=10**6),
        ):
            try:
                decode(broken.tobytes())
            except ImageError as error:
                assert error.stage in ("sniff", "validate", "decode")
                refused += 1
    assert refused > 50


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
