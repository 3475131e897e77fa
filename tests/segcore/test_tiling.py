"""Tiles against whole images, computed by other code; and what tiles must not do: cost other images, or much memory."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segcore import class_maps, tiling
from segcore.class_maps import MapSums, describe
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig, Member, class_probabilities, ensemble_logits, predict_ensemble
from segcore.layers import pad_to_multiple, resize
from segcore.models import SegmentationOutput
from segcore.run_lengths import decode
from segcore.tile_grid import ALIGNMENT_PX, TilingConfig, tile_axis
from segcore.tiling import MaskTooLargeError, TiledImage, TiledMap, predict_tiled

NUM_CLASSES = 4
CONFIG = TilingConfig(tile_px=96, overlap_px=32)  # 8 pixels at each border do not count


class Convolutions(nn.Module):
    """Two 3 x 3 convolutions: a pixel's scores depend on 2 pixels around it."""

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))
        self.second = nn.Parameter(torch.randn(num_classes, 6, 3, 3, generator=generator))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        self.shapes.append(tuple(images_N3HW.shape))
        hidden = F.conv2d(images_N3HW, self.first, padding=1).relu()
        return SegmentationOutput(logits_NCHW=F.conv2d(hidden, self.second, padding=1))


class Strided(Convolutions):
    """One convolution in steps of 4 pixels, padded and enlarged as in the networks of `segcore.models`."""

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        height, width = images_N3HW.shape[-2:]
        padded = pad_to_multiple(images_N3HW, 4)
        small = F.conv2d(padded, self.first, stride=4, padding=1)
        logits = resize(small, height=padded.shape[-2], width=padded.shape[-1])
        return SegmentationOutput(logits_NCHW=logits[:, :, :height, :width])


class Constant(nn.Module):
    """The same scores everywhere, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.5, 2.0, -1.0]))

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        count, _, height, width = images_N3HW.shape
        return SegmentationOutput(logits_NCHW=self.scores.detach().view(1, -1, 1, 1).repeat(count, 1, height, width))


def member(model: nn.Module, config: InferenceConfig | None = None, *, classes: tuple[int, ...] = ()) -> Member:
    config = config or InferenceConfig()
    return Member(model=model.eval(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), config=config, classes=classes)


def pixels(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def tiled_image(pixels_HW3: NDArray[np.uint8], **changes: Any) -> TiledImage:
    height, width, _ = pixels_HW3.shape
    image = TiledImage(height=height, width=width, read=lambda rows, columns: pixels_HW3[rows, columns])
    return replace(image, **changes)


def as_batch(pixels_HW3: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None]


def blended_logits(members: list[Member], pixels_HW3: NDArray[np.uint8], config: TilingConfig) -> Tensor:
    """(C, H, W): what the class map is taken from, put together from the pieces as they leave."""
    height, width, _ = pixels_HW3.shape
    strips: list[list[Tensor]] = [[]]

    def record(scores_Crw: Tensor, **settings: Any) -> tuple[NDArray[np.uint8], MapSums]:
        strips[-1].append(scores_Crw.clone())
        if sum(each.shape[2] for each in strips[-1]) == width:
            strips.append([])
        return describe(scores_Crw, **settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiling, "describe", record)
        ((_, found),) = predict_tiled(members, [tiled_image(pixels_HW3)], config=config)
    assert isinstance(found, TiledMap), found
    blended_CHW = torch.cat([torch.cat(strip, dim=2) for strip in strips if strip], dim=1)
    assert blended_CHW.shape[1:] == (height, width)
    return blended_CHW


def check_equal_to_whole(found: TiledMap | Exception, members: list[Member], pixels_HW3: NDArray[np.uint8]) -> None:
    """Classes and statistics are those of the whole image."""
    assert isinstance(found, TiledMap), found
    height, width, _ = pixels_HW3.shape
    whole = predict_ensemble(members, as_batch(pixels_HW3))
    classes_HW = decode(found.values, found.lengths, height=height, width=width)
    assert (classes_HW == whole.predictions_NHW[0]).mean() > 0.999  # but for ties by rounding
    expected = whole.statistics(0)
    np.testing.assert_allclose(found.statistics.mean_confidence, expected.mean_confidence, rtol=1e-5)
    np.testing.assert_allclose(found.statistics.low_confidence, expected.low_confidence, atol=2e-3)
    np.testing.assert_allclose(found.statistics.mean_entropy, expected.mean_entropy, rtol=1e-4)
    np.testing.assert_allclose(found.statistics.mean_margin, expected.mean_margin, rtol=1e-4)
    assert found.statistics.class_pixels_C.tolist() == np.bincount(classes_HW.ravel(), minlength=NUM_CLASSES).tolist()


@pytest.mark.parametrize("overlap_px", [0, 1, 7, 31, 32])
@pytest.mark.parametrize("length", [1, 95, 96, 97, 127, 128, 129, 200, 511, 2000])
def test_weights_add_up_to_one_on_an_aligned_grid(length: int, overlap_px: int) -> None:
    axis = tile_axis(length, TilingConfig(tile_px=96, overlap_px=overlap_px))
    total = np.zeros(length)
    for begin, end, weights in zip(axis.begins, axis.ends, axis.weights, strict=True):
        assert len(weights) == end - begin and float(weights.min()) > 0
        total[begin:end] += weights.numpy()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    starts = np.array(axis.starts)
    assert axis.size == length if length <= 96 else 96 - ALIGNMENT_PX < axis.size <= 96
    assert starts[0] == 0 and starts[-1] + axis.size == length
    assert (starts % ALIGNMENT_PX == 0).all()
    assert (starts[1:] - starts[:-1] <= axis.size - overlap_px).all() and (np.diff(starts) > 0).all()
    assert all(np.diff(axis.begins) > 0) and all(np.diff(axis.ends) > 0)


def test_weights_fall_as_a_raised_cosine_over_the_middle_half_of_the_overlap() -> None:
    axis = tile_axis(96 + 64, CONFIG)
    assert axis.starts == (0, 64), "an overlap of 32, the least"
    first = np.zeros(160)
    first[: axis.ends[0]] = axis.weights[0].numpy()
    assert (first[:72] == 1).all() and (first[88:] == 0).all()
    np.testing.assert_allclose(first[72:88], np.cos(np.pi / 2 * (np.arange(16) + 0.5) / 16) ** 2, atol=1e-6)


@pytest.mark.parametrize("size", [(96, 96), (200, 97), (131, 333), (40, 300), (1, 300), (300, 1), (1, 1), (5, 7)])
def test_tiles_equal_the_whole_image_where_the_overlap_covers_the_receptive_field(size: tuple[int, int]) -> None:
    pixels_HW3, members = pixels(*size), [member(Convolutions())]
    whole_NCHW, _ = ensemble_logits(members, as_batch(pixels_HW3))
    blended_CHW = blended_logits(members, pixels_HW3, CONFIG)
    torch.testing.assert_close(blended_CHW, whole_NCHW[0], rtol=1e-5, atol=1e-4)
    ((_, found),) = predict_tiled(members, [tiled_image(pixels_HW3)], config=CONFIG)
    check_equal_to_whole(found, members, pixels_HW3)
    assert isinstance(found, TiledMap) and found.num_inputs == found.grid[0] * found.grid[1]


def test_the_operations_of_other_devices_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_maps, "_describe_on_cpu", class_maps._describe_on_device)
    pixels_HW3, members = pixels(131, 333), [member(Convolutions())]
    ((_, found),) = predict_tiled(members, [tiled_image(pixels_HW3)], config=CONFIG, batch_size=2)
    check_equal_to_whole(found, members, pixels_HW3)


@pytest.mark.parametrize("size", [(200, 97), (131, 333), (190, 191)])
def test_tiles_of_a_strided_network_equal_the_whole_image(size: tuple[int, int]) -> None:
    """Its padding and its grid are those of the whole image only where tiles are aligned and end with the image."""
    pixels_HW3, members = pixels(*size), [member(Strided())]
    whole_NCHW, _ = ensemble_logits(members, as_batch(pixels_HW3))
    torch.testing.assert_close(blended_logits(members, pixels_HW3, CONFIG), whole_NCHW[0], rtol=1e-5, atol=1e-4)


def test_too_small_an_overlap_differs_at_the_seams_and_nowhere_else() -> None:
    pixels_HW3, members = pixels(160, 160), [member(Convolutions())]
    config = TilingConfig(tile_px=96, overlap_px=4)  # one pixel at each border does not count: the network needs two
    whole_NCHW, _ = ensemble_logits(members, as_batch(pixels_HW3))
    differs_HW = ((blended_logits(members, pixels_HW3, config) - whole_NCHW[0]).abs() > 1e-3).any(dim=0)
    axis = tile_axis(160, config)
    near_seam = np.zeros(160, bool)
    for start in axis.starts[1:]:
        near_seam[start : start + 4] = True
    for start in axis.starts[:-1]:
        near_seam[start + axis.size - 4 : start + axis.size] = True
    assert differs_HW.any(), "this overlap is too small to show anything"
    assert not differs_HW.numpy()[~near_seam][:, ~near_seam].any()


def test_constant_scores_come_out_as_they_are() -> None:
    pixels_HW3, members = pixels(170, 130), [member(Constant())]
    blended_CHW = blended_logits(members, pixels_HW3, CONFIG)
    torch.testing.assert_close(blended_CHW, torch.tensor([0.5, 2.0, -1.0]).view(3, 1, 1).expand(3, 170, 130))
    ((_, found),) = predict_tiled(members, [tiled_image(pixels_HW3)], config=CONFIG)
    assert isinstance(found, TiledMap)
    assert (found.values.tolist(), found.lengths.tolist()) == ([1], [170 * 130])
    confidence = math.exp(2) / (math.exp(0.5) + math.exp(2) + math.exp(-1))
    np.testing.assert_allclose(found.statistics.mean_confidence, confidence, rtol=1e-6)


class PerPixel(Convolutions):
    """Scores of each pixel alone: mirror images, windows and ensembles of tiles give what those of the whole give."""

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        self.shapes.append(tuple(images_N3HW.shape))
        hidden = F.conv2d(images_N3HW, self.first[:, :, 1:2, 1:2]).relu()
        return SegmentationOutput(logits_NCHW=F.conv2d(hidden, self.second[:, :, 1:2, 1:2]))


@pytest.mark.parametrize(
    ("configs", "classes", "inputs_per_tile"),
    [
        ((InferenceConfig(flip=True),), (), 2),
        ((InferenceConfig(mode="sliding", window_px=64),), (), 4),
        ((InferenceConfig(), InferenceConfig(flip=True)), (), 3),
        ((InferenceConfig(),), (0, 1, 3), 1),
        ((InferenceConfig(precision="bfloat16"),), (), 1),
    ],
    ids=["mirrored", "windows", "ensemble", "classes left out", "bfloat16"],
)
def test_a_tile_is_shown_as_an_image_would_be(
    configs: tuple[InferenceConfig, ...], classes: tuple[int, ...], inputs_per_tile: int
) -> None:
    pixels_HW3 = pixels(160, 100)
    members = [member(PerPixel(), config, classes=classes) for config in configs]
    ((_, found),) = predict_tiled(members, [tiled_image(pixels_HW3)], config=CONFIG)
    assert isinstance(found, TiledMap), found
    assert found.num_inputs == inputs_per_tile * found.grid[0] * found.grid[1]
    whole = predict_ensemble(members, as_batch(pixels_HW3))
    classes_HW = decode(found.values, found.lengths, height=160, width=100)
    assert (classes_HW == whole.predictions_NHW[0]).mean() > 0.998
    np.testing.assert_allclose(found.statistics.mean_confidence, whole.mean_confidence_N[0], rtol=1e-4)


def test_averaged_probabilities_are_blended_by_their_logarithms() -> None:
    members = [member(PerPixel(), InferenceConfig(flip=True))]
    image = pixels(50, 60)
    p_NCHW = class_probabilities(
        members[0].model, as_batch(image), mean=members[0].mean, std=members[0].std, config=members[0].config
    )
    logits_NCHW, num_inputs_N = ensemble_logits(members, as_batch(image))
    torch.testing.assert_close(logits_NCHW.softmax(dim=1), p_NCHW)
    assert num_inputs_N.tolist() == [2]


def test_a_crf_refines_tiles() -> None:
    crf = DenseCRFConfig(iterations=2, theta_alpha=5.0, theta_beta=30.0)
    ((_, found),) = predict_tiled(
        [member(PerPixel(), InferenceConfig(crf=crf))], [tiled_image(pixels(100, 64))], config=CONFIG
    )
    ((_, plain),) = predict_tiled([member(PerPixel())], [tiled_image(pixels(100, 64))], config=CONFIG)
    assert isinstance(found, TiledMap) and isinstance(plain, TiledMap)
    assert len(found.values) < len(plain.values), "a CRF makes larger areas"


def test_tiles_of_several_images_share_a_batch() -> None:
    model = Convolutions()
    images = [pixels(96, 160, seed=seed) for seed in range(4)]  # two tiles each
    found = list(predict_tiled([member(model)], map(tiled_image, images), config=CONFIG, batch_size=3))
    assert [shape[0] for shape in model.shapes] == [3, 3, 2]
    assert {shape[1:] for shape in model.shapes} == {(3, 96, 96)}
    for (_, result), pixels_HW3 in zip(found, images, strict=True):
        check_equal_to_whole(result, [member(Convolutions())], pixels_HW3)
    model.shapes.clear()
    images[1] = pixels(50, 160)  # another size: a batch of its own
    assert len(list(predict_tiled([member(model)], map(tiled_image, images), config=CONFIG, batch_size=3))) == 4
    assert [shape[0] for shape in model.shapes] == [2, 2, 3, 1]


def test_one_image_is_open_at_a_time() -> None:
    events: list[str] = []

    def images() -> Iterator[TiledImage]:
        for number in range(3):
            pixels_HW3 = pixels(96, 160, seed=number)

            def read(rows: slice, columns: slice, number: int = number, all_: Any = pixels_HW3) -> Any:
                events.append(f"read {number}")
                return all_[rows, columns]

            yield tiled_image(pixels_HW3, read=read)
            events.append(f"close {number}")

    assert len(list(predict_tiled([member(Convolutions())], images(), config=CONFIG, batch_size=3))) == 3
    assert events == [event for n in range(3) for event in (f"read {n}", f"read {n}", f"close {n}")]


class Failing(Convolutions):
    """Runs out of memory for more than one tile at once, and for dark images; gives NaN for bright ones."""

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        output = super().forward(images_N3HW)
        if len(images_N3HW) > 1 or images_N3HW.mean() < -1:
            raise torch.OutOfMemoryError("out of memory")
        if images_N3HW.mean() > 1:
            output.logits_NCHW[:, 0, 0, 0] = float("nan")
        return output


def test_what_goes_wrong_with_an_image_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def broken(rows: slice, columns: slice) -> NDArray[np.uint8]:
        if columns.start:
            raise OSError("the file is truncated")
        return np.zeros((96, 96, 3), np.uint8) + np.uint8(128)

    good = pixels(96, 160)
    dark, bright = np.zeros((96, 160, 3), np.uint8), np.full((96, 160, 3), 255, np.uint8)
    images = [tiled_image(good), tiled_image(dark), tiled_image(good, read=broken), tiled_image(bright)]
    images.append(tiled_image(good))
    found = dict(predict_tiled([member(Failing())], images, config=CONFIG, batch_size=4))
    assert len(found) == len(images)
    results = [found[image] for image in images]
    for result in (results[0], results[4]):
        check_equal_to_whole(result, [member(Convolutions())], good)
    assert isinstance(results[1], torch.OutOfMemoryError)
    assert isinstance(results[2], OSError) and "truncated" in str(results[2])
    assert isinstance(results[3], ValueError) and "scores are not finite" in str(results[3])
    assert "the network failed on 4 tiles (out of memory); trying half as many at once" in caplog.text


def test_no_tile_is_read_after_its_image_has_failed() -> None:
    reads: list[int] = []

    def read(rows: slice, columns: slice) -> NDArray[np.uint8]:
        reads.append(columns.start)
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)

    image = TiledImage(height=96, width=6400, read=read)
    ((_, found),) = predict_tiled([member(Failing())], [image], config=CONFIG)
    assert isinstance(found, torch.OutOfMemoryError)
    assert len(reads) <= 3, "the one that failed, and what was read ahead"


def test_what_waits_for_the_next_row_of_tiles_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    image, members = tiled_image(pixels(160, 1000)), [member(Convolutions())]
    waiting_bytes = 4 * NUM_CLASSES * 16 * 1000  # the blended half of the overlap
    monkeypatch.setattr(tiling, "MAX_BAND_BYTES", waiting_bytes)
    ((_, found),) = predict_tiled(members, [image], config=CONFIG)
    assert isinstance(found, TiledMap)
    monkeypatch.setattr(tiling, "MAX_BAND_BYTES", waiting_bytes - 1)
    ((_, refused),) = predict_tiled(members, [image], config=CONFIG)
    assert isinstance(refused, ValueError)
    assert f"16 rows of its logits, 4 classes, take {waiting_bytes} bytes, over the budget" in str(refused)


def test_a_mask_of_noise_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image, members = tiled_image(pixels(160, 200)), [member(Convolutions())]
    ((_, found),) = predict_tiled(members, [image], config=CONFIG)
    assert isinstance(found, TiledMap)
    monkeypatch.setattr(tiling, "MAX_RUNS", len(found.lengths))
    others = [tiled_image(pixels(160, 200)), tiled_image(pixels(160, 200, seed=1)), tiled_image(0 * pixels(160, 200))]
    (_, again), (_, _), (_, plain) = predict_tiled(members, others, config=CONFIG)
    assert isinstance(again, TiledMap), "as many as there may be"
    monkeypatch.setattr(tiling, "MAX_RUNS", len(found.lengths) // 2)
    (_, refused), (_, _), (_, plain) = predict_tiled(members, others, config=CONFIG)
    assert isinstance(refused, MaskTooLargeError)
    assert f"more than {len(found.lengths) // 2} runs of equal pixels" in str(refused)
    assert isinstance(plain, TiledMap), "and costs no other image"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"above_px": 0}, "above_px is 0; expected 1 pixel or more"),
        ({"tile_px": 63}, "tile_px is 63; expected 64 pixels or more"),
        ({"tile_px": 64, "overlap_px": 1}, "overlap_px is 1; with tiles of 64 pixels expected 0 to 0"),
        ({"overlap_px": 513}, "overlap_px is 513; with tiles of 1024 pixels expected 0 to 512"),
        ({"overlap_px": -1}, "overlap_px is -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TilingConfig(), **changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (InferenceConfig(mode="proposals"), "cannot be shown in tiles: mode 'proposals' looks for objects"),
        (InferenceConfig(short_side_px=500), "cannot be shown in tiles: short_side_px shows the whole image"),
    ],
)
def test_what_needs_the_whole_image_is_refused(config: InferenceConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(predict_tiled([member(Convolutions(), config)], [], config=CONFIG))
