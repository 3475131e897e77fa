"""Windows against the same pixels decoded as a whole, for every kind of file; what is read, held and refused."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from pipelines.intake import headers, images, jpeg_files, tiff_pieces, windows
from pipelines.intake.formats import ImageError, PixelBudgetError, sniff
from pipelines.intake.images import decode_image
from pipelines.intake.sources import Source, SourceError
from pipelines.intake.tiff_pieces import TiffPieces
from pipelines.intake.windows import ImageWindows, decoded_bytes, num_pixels, open_windows
from tests.pipelines.tiffs import shared_tiff_bytes, tiff_bytes
from tests.pipelines.zoo.writers import encoded, png_of_rows

HEIGHT, WIDTH = 83, 117
BUDGET = 10**6


def noise(*, channels: int = 3, bits: int = 8) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def opened(data: bytes) -> ImageWindows:
    return open_windows(Source(data=data), max_pixels=BUDGET)


def check_windows(data: bytes, *, by_pieces: bool) -> None:
    """Pixels and facts are those of `decode_image`, and windows are read in the way that they should be."""
    whole = decode_image(data)
    found = opened(data)
    assert isinstance(found.stored, TiffPieces) == by_pieces
    assert (found.height, found.width) == (whole.height, whole.width)
    bottom, right = whole.height, whole.width
    for rows, columns in (
        (slice(0, bottom), slice(0, right)),
        (slice(17, 50), slice(40, 79)),
        (slice(bottom - 1, bottom), slice(right - 3, right)),
        (slice(0, 1), slice(0, 1)),
    ):
        np.testing.assert_array_equal(found.read(rows, columns), whole.pixels_HW3[rows, columns])
    for fact in ("source_height", "source_width", "source_mode", "orientation"):
        assert getattr(found, fact) == getattr(whole, fact)
    assert sorted(found.notes) == sorted(whole.notes)
    found.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_pieces, "_WANTED_PIXELS", 1000)  # 8 rows


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_strips_of_every_compression(mode: str, compression: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    rows = {TiffImagePlugin.ROWSPERSTRIP: 16 if compression == "jpeg" else 5}
    check_windows(encoded(image, "TIFF", compression=compression, tiffinfo=rows), by_pieces=True)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_the_policies_of_the_intake_hold_for_pieces(mode: str, compression: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    check_windows(encoded(image, "TIFF", compression=compression), by_pieces=True)


def test_fax_strips_and_colour_profiles_of_pieces() -> None:
    check_windows(encoded(Image.fromarray(noise()).convert("1"), "TIFF", compression="group4"), by_pieces=True)
    wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # an RGB profile on CMYK pixels
    data = encoded(Image.fromarray(noise()).convert("CMYK"), "TIFF", icc_profile=wrong)
    check_windows(data, by_pieces=True)


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "layout",
    [{"tile": (32, 48)}, {"rows_per_strip": 3}, {"rows_per_strip": 50}, {}],
    ids=["tiles", "thin strips", "thick strips", "one strip"],
)
def test_tiles_strips_planes_and_byte_orders(layout: dict[str, Any], order: Literal["<", ">"], deflate: bool) -> None:
    for pixels_HWK in (noise(), noise(channels=1), noise(channels=1, bits=16), noise(bits=16)):
        check_windows(tiff_bytes(pixels_HWK, order=order, deflate=deflate, **layout), by_pieces=True)
    check_windows(tiff_bytes(noise(), order=order, deflate=deflate, separate_planes=True, **layout), by_pieces=True)


def test_a_big_tiff_is_read_by_pieces() -> None:
    check_windows(tiff_bytes(noise(), big=True, tile=(32, 48)), by_pieces=True)
    check_windows(encoded(Image.fromarray(noise()), "TIFF", big_tiff=True), by_pieces=True)


def test_sixteen_bit_colours_in_bare_planes_are_refused_since_pillow_mixes_their_bytes() -> None:
    data = tiff_bytes(noise(bits=16), separate_planes=True, deflate=False)
    for read in (decode_image, opened):
        with pytest.raises(ImageError, match="uncompressed separate planes of more than 8 bits") as caught:
            read(data)
        assert caught.value.stage == "validate"
    packed = tiff_bytes(noise(bits=16), separate_planes=True)
    np.testing.assert_array_equal(decode_image(packed).pixels_HW3, noise(bits=16) // 256)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {}),
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_windows_are_upright(file_format: str, options: dict[str, Any], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise()), file_format, exif=exif, **options)
    check_windows(data, by_pieces=file_format == "TIFF")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_that_cannot_be_read_by_pieces_is_decoded_once(
    monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    data = tiff_bytes(noise(), rows_per_strip=50, tags=[(274, 3, (orientation,))])
    monkeypatch.setattr(tiff_pieces, "MAX_PIECE_PIXELS", 49 * WIDTH)
    check_windows(data, by_pieces=False)
    monkeypatch.setattr(windows, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ImageError, match="this TIFF of .* pixels cannot be read piece by piece.*TILED=YES"):
        opened(data)


@pytest.mark.parametrize(
    ("file_format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("GIF", {})]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_formats_are_decoded_once(mode: str, file_format: str, options: dict[str, Any]) -> None:
    check_windows(encoded(Image.fromarray(noise()).convert(mode), file_format, **options), by_pieces=False)


def test_transparency_palettes_and_sixteen_bits_of_pngs() -> None:
    image = Image.fromarray(noise())
    check_windows(encoded(image.convert("RGBA"), "PNG"), by_pieces=False)
    check_windows(encoded(image, "PNG", transparency=(1, 2, 3)), by_pieces=False)
    check_windows(encoded(image.quantize(20), "PNG", transparency=3), by_pieces=False)
    check_windows(encoded(Image.fromarray(noise(channels=1, bits=16)[..., 0]), "PNG"), by_pieces=False)
    four_bits = [bytes(row) for row in noise()[:, : (WIDTH + 1) // 2, 0]]
    transparent = (b"tRNS", struct.pack(">H", 7))
    check_windows(png_of_rows(four_bits, width=WIDTH, bits=4, colour=0, before=[transparent]), by_pieces=False)
    check_windows(encoded(image.convert("CMYK"), "JPEG"), by_pieces=False)


def test_an_image_has_no_more_notes_than_a_row_can_bear() -> None:
    image = Image.fromarray(np.arange(HEIGHT, dtype=np.uint8)[:, None].repeat(WIDTH, axis=1)).convert("P")
    image.putpalette([10, 20, 30])  # one colour
    found = opened(encoded(image, "PNG"))
    for row in range(1, HEIGHT):
        found.read(slice(row, row + 1), slice(0, WIDTH))
    assert 2 <= len(found.notes) <= 16


def test_several_frames_are_noted() -> None:
    frames = [Image.fromarray(noise()), Image.fromarray(noise()[::-1].copy())]
    check_windows(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), by_pieces=True)


def sweep(found: ImageWindows, *, side: int, step: int) -> Iterator[NDArray[np.uint8]]:
    for top in range(0, found.height - side + 1, step):
        for left in range(0, found.width - side + 1, step):
            yield found.read(slice(top, top + side), slice(left, left + side))


def test_of_tiles_and_strips_none_is_decoded_twice_in_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(data: bytes, *, max_pixels: int) -> images.DecodedImage:
        calls.append(len(data))
        return decode_image(data, max_pixels=max_pixels)

    monkeypatch.setattr(tiff_pieces, "decode_image", counted)
    for data, num_pieces in (
        (tiff_bytes(noise(), tile=(32, 48)), 3 * 3),
        (tiff_bytes(noise(), rows_per_strip=4), 9),  # two at once: 70 rows of 8
        (tiff_bytes(noise(), deflate=False), 9),  # cut anew
    ):
        found = opened(data)
        calls.clear()
        assert len(list(sweep(found, side=40, step=30))) == 2 * 3
        assert len(calls) == num_pieces
        assert isinstance(found.stored, TiffPieces)
        found.stored.cache_bytes = 20_000  # of 29,000
        calls.clear()
        list(sweep(found, side=40, step=30))
        assert calls, "what no longer fits the cache is decoded again"


def test_only_the_bytes_of_a_window_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.tif"
    path.write_bytes(tiff_bytes(noise(), tile=(16, 16), deflate=False))
    source = Source(uri=str(path))
    found = open_windows(source, max_pixels=BUDGET)
    asked: list[tuple[int, int]] = []
    spans = Source.spans

    def recorded(self: Source, wanted: list[tuple[int, int]]) -> list[bytes]:
        asked.extend(wanted)
        return spans(self, wanted)

    monkeypatch.setattr(Source, "spans", recorded)
    np.testing.assert_array_equal(found.read(slice(20, 30), slice(30, 40)), noise()[20:30, 30:40])
    assert [stop - start for start, stop in asked] == [16 * 16 * 3] * 2
    source.check_unchanged()
    found.close()


def test_a_huge_tiff_is_opened_and_read_without_its_pixels() -> None:
    contents = [np.full((256, 256, 3), value, np.uint8) for value in (10, 20, 30)]
    data = shared_tiff_bytes(20_000, 20_000, side=256, contents=contents, pick=lambda number: number % 3)
    assert len(data) < 100_000 and num_pixels(Source(data=data)) == 400_000_000
    with pytest.raises(PixelBudgetError, match="20000 x 20000 = 400000000 pixels, over the budget of 134217728"):
        decode_image(data)
    with pytest.raises(ImageError, match="over the budget of 399999999"):
        open_windows(Source(data=data), max_pixels=399_999_999)
    found = open_windows(Source(data=data), max_pixels=400_000_000)
    assert (found.height, found.width) == (20_000, 20_000)
    tiles_across = 79
    number = (19_990 // 256) * tiles_across + 19_999 // 256
    assert found.read(slice(19_990, 19_991), slice(19_999, 20_000)).tolist() == [[[10 * (number % 3 + 1)] * 3]]


def test_memory_for_decoding_at_once_is_budgeted_before() -> None:
    rgb = Image.fromarray(noise())
    per_pixel = {
        "JPEG": (encoded(rgb, "JPEG"), 4.0),
        "gray JPEG": (encoded(rgb.convert("L"), "JPEG"), 1.0),
        "progressive 4:2:0": (encoded(rgb, "JPEG", progressive=True, subsampling=2), 7.0),
        "progressive 4:4:4": (encoded(rgb, "JPEG", progressive=True, subsampling=0), 10.0),
        "16-bit PNG": (encoded(Image.fromarray(noise(channels=1, bits=16)[..., 0]), "PNG"), 2.0),
    }
    for name, (data, expected) in per_pixel.items():
        image = headers.open_header(sniff(data), io.BytesIO(data), max_pixels=BUDGET)
        assert decoded_bytes(image) == expected * HEIGHT * WIDTH, name
    with pytest.raises(ImageError, match="takes 38844 bytes, over the budget of 38843; save it as a TIFF with tiles"):
        open_windows(Source(data=per_pixel["JPEG"][0]), max_pixels=BUDGET, max_decoded_bytes=4 * HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_formats_whose_decoders_hold_several_copies_keep_the_ordinary_budget(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ImageError, match=f"this {file_format} of 83 x 117 .*; save it as a TIFF with tiles"):
        opened(encoded(Image.fromarray(noise()), file_format))


def test_file_sizes_are_budgeted(monkeypatch: pytest.MonkeyPatch) -> None:
    webp = encoded(Image.fromarray(noise()), "WEBP")
    monkeypatch.setattr(windows, "MAX_BYTES", 100)
    with pytest.raises(
        ImageError, match="the WEBP file has .* bytes, over the budget of 100 of files that must be held"
    ):
        opened(webp)
    monkeypatch.setattr(windows, "MAX_FILE_BYTES", 50)
    with pytest.raises(ImageError, match="bytes, over the budget of 50; cut it into tiles"):
        opened(webp)


@pytest.mark.parametrize("deflate", [True, False])
def test_truncated_tiffs_are_refused_where_bytes_are_missing(deflate: bool) -> None:
    whole = tiff_bytes(noise(), tile=(32, 48), deflate=deflate)
    # The directory stands behind the pixels: cut some out, and let it point behind the end of the file.
    (place,) = struct.unpack("<I", whole[4:8])
    broken = bytearray(whole)
    entry = broken.index(struct.pack("<HH", 324, 4), place)
    (offsets,) = struct.unpack("<I", broken[entry + 8 : entry + 12])
    broken[offsets : offsets + 4] = struct.pack("<I", len(broken) - 10)
    found = opened(bytes(broken))
    np.testing.assert_array_equal(found.read(slice(40, 83), slice(50, 117)), noise()[40:83, 50:117])
    with pytest.raises(ImageError, match="truncated or broken") as caught:
        found.read(slice(0, 10), slice(0, 10))
    assert caught.value.stage == "decode"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP"])
def test_truncated_files_are_refused(file_format: str) -> None:
    data = encoded(Image.fromarray(noise()), file_format)
    with pytest.raises(ImageError, match="truncated or broken") as caught:
        opened(data[: len(data) // 2]).read(slice(0, 10), slice(0, 10))
    assert caught.value.stage == "decode"


def test_a_huge_jpeg_whose_data_stop_before_its_end_is_refused_by_small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    gray[: HEIGHT // 2] = noise()[: HEIGHT // 2]
    for pixels_HW3, is_cut in ((gray, False), (noise(), True)):
        data = encoded(Image.fromarray(pixels_HW3), "JPEG")
        if is_cut:
            data = data[: len(data) // 2] + data[-2:]
        for largest in (0, BUDGET):
            monkeypatch.setattr(jpeg_files, "_TWICE_PIXELS", largest)
            found = opened(data)
            if is_cut:
                with pytest.raises(ImageError, match="its data stop before its end marker"):
                    found.read(slice(0, 10), slice(0, 10))
            else:
                np.testing.assert_array_equal(
                    found.read(slice(0, 10), slice(0, 10)), decode_image(data).pixels_HW3[:10, :10]
                )


def test_an_image_is_dark_only_if_all_of_its_pieces_are() -> None:
    dark = noise(channels=1, bits=16) >> 4
    check_windows(tiff_bytes(dark, tile=(32, 48)), by_pieces=True)
    dark[0, 0] = 65535
    data = tiff_bytes(dark, tile=(32, 48))
    check_windows(data, by_pieces=True)
    found = opened(data)
    found.read(slice(40, HEIGHT), slice(0, WIDTH))
    assert any("the picture is dark" in note for note in found.notes)
    found.read(slice(0, 40), slice(0, WIDTH))
    found.read(slice(40, HEIGHT), slice(0, WIDTH))
    assert not any("the picture is dark" in note for note in found.notes)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("deflate", [True, False])
def test_only_image_errors_come_out_of_broken_files(deflate: bool) -> None:
    data = tiff_bytes(noise()[:30, :40], tile=(16, 16), deflate=deflate)
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        broken = np.frombuffer(data, np.uint8).copy()
        # half of the flips in the directory, at the end of the file
        places = random.integers(len(broken) - 300 if random.random() < 0.5 else 0, len(broken), random.integers(1, 6))
        broken[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
        try:
            found = opened(broken.tobytes())
            found.read(slice(0, found.height), slice(0, found.width))
        except ImageError as error:
            assert error.stage in ("sniff", "validate", "decode")
            refused += 1
    assert refused > 30


@pytest.fixture
def store() -> Iterator[tuple[Any, str]]:
    """fsspec's file system in memory, with a tiled TIFF, and its URI."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/tiles.tif", tiff_bytes(noise(), tile=(32, 48)))
    yield fs, "memory://bucket/tiles.tif"
    fs.rm("/bucket", recursive=True)


def test_files_are_read_where_they_lie(store: tuple[Any, str]) -> None:
    fs, uri = store
    check = open_windows(Source(uri=uri), max_pixels=BUDGET)
    np.testing.assert_array_equal(check.read(slice(0, HEIGHT), slice(0, WIDTH)), noise())
    fs.pipe_file("/bucket/photo.jpg", jpeg := encoded(Image.fromarray(noise()), "JPEG"))
    photo = open_windows(Source(uri="memory://bucket/photo.jpg"), max_pixels=BUDGET)
    np.testing.assert_array_equal(photo.read(slice(0, HEIGHT), slice(0, WIDTH)), decode_image(jpeg).pixels_HW3)
    photo.close()


def test_what_the_store_did_wrong_is_told_from_a_broken_image(
    store: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, uri = store
    with pytest.raises(SourceError, match="FileNotFoundError"):
        Source(uri="memory://bucket/gone.tif")
    fs.pipe_file("/bucket/photo.jpg", encoded(Image.fromarray(noise()), "JPEG"))
    tiles = open_windows(Source(uri=uri), max_pixels=BUDGET)
    photo = open_windows(Source(uri="memory://bucket/photo.jpg"), max_pixels=BUDGET)
    unread = Source(uri=uri)

    def reset(*_: object, **__: object) -> bytes:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(type(fs), "cat_file", reset)
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", reset)
    for found in (tiles, photo):
        with pytest.raises(SourceError, match="ConnectionError: reset by peer"):
            found.read(slice(0, 10), slice(0, 10))
    with pytest.raises(SourceError, match="ConnectionError: reset by peer"):
        num_pixels(unread)


def test_a_file_that_changes_while_it_is_read_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    path.write_bytes(tiff_bytes(noise(), tile=(32, 48)))
    source = Source(uri=str(path))
    source.check_unchanged()
    path.write_bytes(tiff_bytes(noise()[::-1].copy(), tile=(32, 48)))
    with pytest.raises(SourceError, match="the file changed while its windows were read"):
        source.check_unchanged()
    path.unlink()
    with pytest.raises(SourceError, match="FileNotFoundError"):
        source.check_unchanged()
