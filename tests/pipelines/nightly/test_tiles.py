"""Large images of a shard, without Ray: where their bytes come from, what each costs, what becomes of broken ones."""

import io
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipelines.intake.images import decode_image
from pipelines.intake.sources import Source
from pipelines.intake.windows import open_windows
from pipelines.night_report.drift import mean_brightness
from pipelines.nightly import fetch as segment_fetch
from pipelines.nightly import tiles as segment_tiles
from pipelines.nightly.rows import WorkItem
from pipelines.nightly.tiles import segment_tiled
from pipelines.nightly.worker import decode_item
from segcore import tiling
from segcore.inference import InferenceConfig, Member, predict_ensemble
from segcore.models import SegmentationOutput
from segcore.run_lengths import decode
from segcore.tile_grid import TilingConfig
from segcore.tiling import TiledMap
from tests.pipelines.processes import needs_proc
from tests.pipelines.tiffs import shared_tiff_bytes, tiff_bytes

TILING = TilingConfig(tile_px=96, overlap_px=0)
OVERLAPPING = TilingConfig(tile_px=96, overlap_px=32)
HEIGHT, WIDTH = 100, 200
WHOLE_PX = 10_000


class Colours(nn.Module):
    """The class of a pixel is its strongest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3)[..., None, None])
        self.batches: list[int] = []

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        self.batches.append(len(images_N3HW))
        return SegmentationOutput(logits_NCHW=F.conv2d(images_N3HW, self.weight))


def network() -> Member:
    return Member(model=Colours().eval(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), config=InferenceConfig())


def noise(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def jpeg(pixels_HW3: NDArray[np.uint8], *, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", exif=exif)
    return file.getvalue()


def sent(place: int, data: bytes) -> WorkItem:
    """A file that came with its shard."""
    planned = {"uri": f"{place}", "size_bytes": len(data)}
    return WorkItem(place=place, planned=planned, data=data, first_bytes=data[:16], attempts=1)


def left(place: int, path: Path) -> WorkItem:
    """A file that stayed where it lies."""
    planned = {"uri": str(path), "size_bytes": path.stat().st_size}
    return WorkItem(place=place, planned=planned, data=b"", first_bytes=b"", attempts=0)


def segmented(items: list[WorkItem], *, batch_size: int = 1, member: Member | None = None) -> dict[int, TiledMap]:
    """Decode the items as a worker does, and show those in tiles that are too large."""
    for item in items:
        decode_item(item, whole_px=WHOLE_PX, in_tiles=True)
    large = [item for item in items if item.source is not None]
    return segment_tiled([member or network()], large, tiling=TILING, batch_size=batch_size, max_pixels=HEIGHT * WIDTH)


def check_mask(found: TiledMap, data: bytes) -> None:
    pixels_HW3 = decode_image(data).pixels_HW3
    images_13HW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None]
    expected_HW = predict_ensemble([network()], images_13HW).predictions_NHW[0]
    height, width = expected_HW.shape
    np.testing.assert_array_equal(decode(found.values, found.lengths, height=height, width=width), expected_HW)


def test_large_images_of_every_kind_are_segmented_and_small_ones_left_to_the_others() -> None:
    files = [
        tiff_bytes(noise(0), tile=(32, 48)),
        jpeg(noise(1)),
        jpeg(noise(2)[:50, :60]),
        jpeg(noise(3), orientation=6),
        tiff_bytes(noise(4), rows_per_strip=9, tags=[(274, 3, (8,))]),
    ]
    items = [sent(place, data) for place, data in enumerate(files)]
    maps = segmented(items)
    assert sorted(maps) == [0, 1, 3, 4]
    assert items[2].image is not None and items[2].source is None
    for place, found in maps.items():
        check_mask(found, files[place])
        item, whole = items[place], decode_image(files[place])
        assert item.failure is None and item.image is None and item.data == b""
        assert item.windows is not None and item.windows.stored is None, "what it held is let go"
        for fact in ("height", "width", "source_height", "source_width", "source_mode", "orientation"):
            assert getattr(item.windows, fact) == getattr(whole, fact)
        assert tuple(item.windows.notes) == whole.notes
        assert item.decode_ms > 0
        assert item.brightness == pytest.approx(mean_brightness(whole.pixels_HW3), abs=1e-9), "no pixel counts twice"


def test_the_brightness_of_overlapping_tiles_counts_each_pixel_once() -> None:
    item = decode_item(sent(0, jpeg(noise())), whole_px=WHOLE_PX, in_tiles=True)
    maps = segment_tiled([network()], [item], tiling=OVERLAPPING, batch_size=2, max_pixels=HEIGHT * WIDTH)
    assert maps[0].grid == (2, 5)
    assert item.brightness == pytest.approx(mean_brightness(decode_image(jpeg(noise())).pixels_HW3), abs=1e-9)


def test_tiles_of_the_shards_images_share_batches() -> None:
    member = network()
    maps = segmented([sent(place, jpeg(noise(place))) for place in range(3)], batch_size=8, member=member)
    assert [found.num_inputs for found in maps.values()] == [6, 6, 6]
    assert isinstance(member.model, Colours) and member.model.batches == [8, 8, 2]


def test_files_that_stay_in_place_are_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_fetch, "MAX_SHARD_BYTES", 1000)
    files = {"tiles.tif": tiff_bytes(noise(0), tile=(32, 48)), "photo.jpg": jpeg(noise(1))}
    files["small.jpg"] = jpeg(noise(2)[:50, :60])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    items = [left(place, tmp_path / name) for place, name in enumerate(files)]
    maps = segmented(items)
    assert sorted(maps) == [0, 1]
    for place, name in enumerate(("tiles.tif", "photo.jpg")):
        check_mask(maps[place], files[name])
    assert [item.first_bytes for item in items] == [data[:16] for data in files.values()]
    assert items[2].image is not None
    np.testing.assert_array_equal(items[2].image.pixels_HW3, decode_image(files["small.jpg"]).pixels_HW3)


def test_what_is_wrong_with_a_large_image_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_fetch, "MAX_SHARD_BYTES", 30_000)
    whole = jpeg(noise(0))
    (tmp_path / "grown.tif").write_bytes(tiff_bytes(noise(1)))
    (tmp_path / "gone.tif").write_bytes(tiff_bytes(noise(1)))
    (tmp_path / "notes.txt").write_bytes(b"the camera was cleaned" * 2000)
    items = [
        sent(0, whole),
        sent(1, whole[: len(whole) // 2]),
        sent(2, jpeg(np.concatenate([noise(2), noise(3)]))),  # over max_pixels
        left(3, tmp_path / "grown.tif"),
        left(4, tmp_path / "gone.tif"),
        left(5, tmp_path / "notes.txt"),
        sent(6, whole),
    ]
    with (tmp_path / "grown.tif").open("ab") as file:
        file.write(b"more")
    os.unlink(tmp_path / "gone.tif")
    maps = segmented(items)
    assert sorted(maps) == [0, 6]
    failures = [(item.failure.stage, item.failure.retryable) if item.failure else None for item in items]
    assert failures == [
        None, ("decode", False), ("validate", False), ("fetch", True), ("fetch", True), ("sniff", False), None
    ]  # fmt: skip
    assert items[2].failure and "200 x 200 = 40000 pixels, over the budget of 20000" in items[2].failure.message
    assert items[3].failure and "bytes when it was listed and has" in items[3].failure.message


def test_a_file_that_changes_while_it_is_read_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_fetch, "MAX_SHARD_BYTES", 1000)
    path = tmp_path / "tiles.tif"
    path.write_bytes(tiff_bytes(noise(0), tile=(32, 48)))
    item = left(0, path)

    def replaced(source: Source, *, max_pixels: int) -> object:
        found = open_windows(source, max_pixels=max_pixels)
        os.utime(path, (1, 1))
        return found

    monkeypatch.setattr(segment_tiles, "open_windows", replaced)
    assert segmented([item]) == {}
    assert item.failure and (item.failure.stage, item.failure.retryable) == ("fetch", True)
    assert "the file changed while its windows were read" in item.failure.message


def _write_huge_tiff(path: Path) -> None:
    """Of few kilobytes."""
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    contents = [
        np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(level)), axis=-1) for level in (20, 140, 250)
    ]
    data = shared_tiff_bytes(20_000, 20_000, side=256, contents=contents, pick=lambda number: number * 7 % 3)
    path.write_bytes(data)


def _write_huge_jpeg(path: Path) -> None:
    band = Image.linear_gradient("L").resize((20_000, 1000))
    image = Image.new("RGB", (20_000, 20_000))
    for top in range(0, 20_000, 1000):
        image.paste(Image.merge("RGB", [band, band.transpose(Image.Transpose.FLIP_LEFT_RIGHT), band]), (0, top))
    image.save(path, "JPEG")


def _peak_bytes_of(path: Path) -> int:
    """Segment an image of 20,000 x 20,000 pixels, and tell this process's largest resident memory."""
    item = left(0, path)
    item.source = Source(uri=str(path))
    maps = segment_tiled([network()], [item], tiling=TilingConfig(), batch_size=1, max_pixels=2**29)
    assert item.failure is None, item.failure
    assert maps[0].grid == (23, 23) and maps[0].statistics.class_pixels_C.sum() == 400_000_000
    assert int(maps[0].lengths.sum(dtype=np.int64)) == 400_000_000
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(peak.split()[1]) * 1024  # ru_maxrss begins with what the process had that started this one


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("write", [_write_huge_tiff, _write_huge_jpeg], ids=["tiles of a TIFF", "JPEG"])
def test_twenty_thousand_pixels_a_side_stay_below_four_gigabytes(write: Callable[[Path], None], tmp_path: Path) -> None:
    """In a process of its own, whose peak it is. With a real network and Ray: benchmarks/huge_images.py."""
    peak_bytes: list[int | None] = []
    for work in (write, _peak_bytes_of):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak_bytes.append(pool.submit(work, tmp_path / "image").result())
    assert peak_bytes[-1] is not None and peak_bytes[-1] < 4e9


def test_a_mask_of_noise_ends_in_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "MAX_RUNS", 100)
    item = sent(0, jpeg(noise(0)))
    assert segmented([item]) == {}
    assert item.failure and (item.failure.stage, item.failure.retryable) == ("encode", False)
    assert "the class map is almost noise: more than 100 runs" in item.failure.message


def test_large_files_of_images_that_are_decoded_at_once_keep_the_ordinary_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_fetch, "MAX_SHARD_BYTES", 1000)
    monkeypatch.setattr(segment_tiles, "MAX_BYTES", 2000)
    (tmp_path / "large.jpg").write_bytes(jpeg(noise(0)))
    for in_tiles, whole_px, stage in ((True, HEIGHT * WIDTH, "validate"), (False, WHOLE_PX, "validate")):
        item = decode_item(left(0, tmp_path / "large.jpg"), whole_px=whole_px, in_tiles=in_tiles)
        assert item.failure and item.failure.stage == stage and item.source is None
        assert "over the budget of 2000" in item.failure.message
    refused = decode_item(sent(0, jpeg(noise(0))[:1000]), whole_px=WHOLE_PX, in_tiles=False)
    assert refused.failure and "over the budget of 10000; cut it into tiles" in refused.failure.message
