"""Generated street-like scenes: nothing to download, labels exact, difficulty like a small CamVid.

A road with pavements, buildings and gardens on both sides, and cars, people, poles and signs that hide one another,
under changing light. Colours overlap between classes (gray walls, roads and cars; green grass and trees), poles are
2 to 4 px thin, and objects have an ignored border as in hand-made labels. Image i of a split is the same whoever
draws it.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.listing import ClassTable, DatasetListing, Sample
from pipelines.datasets.scene_canvas import Camera, Canvas, Floats, darken, fill_polygon, noise, paint_object
from pipelines.datasets.scene_objects import (
    BUILDING,
    GRASS,
    LEAVES,
    PAVEMENT,
    ROAD,
    SKY,
    TREE,
    WALLS,
    Light,
    building,
    car,
    fence,
    person,
    pick,
    pole,
    shade,
    sign,
    tree,
)
from pipelines.intake.labels import encode_labels_png
from segcore import IGNORE_INDEX

CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (70, 130, 180)),
    ("building", (110, 70, 70)),
    ("road", (128, 64, 128)),
    ("pavement", (244, 35, 232)),
    ("grass", (152, 251, 152)),
    ("tree", (107, 142, 35)),
    ("car", (0, 0, 142)),
    ("person", (220, 20, 60)),
    ("pole", (250, 170, 30)),
    ("sign", (220, 220, 0)),
    ("fence", (190, 153, 153)),
)
DRAWING_VERSION = 1
"""Raised when the same seed gives other pictures, so that a half-prepared dataset of the old ones is not continued."""

JPEG_QUALITY = 92
NEAREST, FARTHEST = 3.0, 90.0  # metres


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """Generated street-like scenes with 11 classes: nothing has to be downloaded."""

    num_train: int = 300
    """Images of the train split."""
    num_val: int = 80
    """Images of the val split."""
    height: int = 240
    """Rows of an image, in px."""
    width: int = 320
    """Columns of an image, in px."""
    seed: int = 0
    """Another seed gives other scenes."""

    def __post_init__(self) -> None:
        """Refuse sizes at which the drawing makes no sense."""
        if self.num_train < 1 or self.num_val < 0:
            raise ValueError(f"{self.num_train} train and {self.num_val} val images; ask for at least 1 and 0")
        if not (64 <= self.height <= 960 and 64 <= self.width <= 960):
            raise ValueError(f"scenes of {self.height} x {self.width} px; height and width are 64 to 960")


def list_samples(config: ScenesConfig) -> DatasetListing:
    """Name the scenes; they are drawn when they are read."""
    samples = []
    for split, count in (("train", config.num_train), ("val", config.num_val)):
        for index in range(count):
            image_id = f"{split}-{index:05d}"
            uri = f"scenes:{config.seed}/{image_id}"
            samples.append(Sample(image_id=image_id, split=split, image_uri=uri, label_uri=uri))
    return DatasetListing(
        name="scenes",
        config=dataclasses.asdict(config) | {"drawing_version": DRAWING_VERSION},
        class_table=ClassTable(
            names=tuple(name for name, _ in CLASSES),
            palette=tuple(colour for _, colour in CLASSES),
            values=tuple(range(len(CLASSES))),
            ignore_values=(IGNORE_INDEX,),
        ),
        samples=tuple(samples),
        read=partial(read_scene, height=config.height, width=config.width),
    )


def read_scene(sample: Sample, *, height: int, width: int) -> tuple[bytes, bytes]:
    """The scene that a sample names, as JPEG and as PNG of class indices."""
    seed = int.from_bytes(hashlib.sha256(sample.image_uri.encode()).digest()[:8], "big")
    pixels_HW3, labels_HW = draw_scene(seed, height=height, width=width)
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue(), encode_labels_png(labels_HW)


def draw_scene(seed: int, *, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: uint8 RGB (height, width, 3) and class indices (height, width), 255 = ignored."""
    rng = np.random.default_rng(seed)
    camera = Camera(
        height=height,
        width=width,
        focal_px=width * float(rng.uniform(0.8, 1.0)),
        centre_column=width * float(rng.uniform(0.35, 0.65)),
        horizon_row=height * float(rng.uniform(0.36, 0.5)),
        eye_height=float(rng.uniform(1.3, 1.9)),
    )
    sunny = rng.random() < 0.6
    light = Light(shadow=float(rng.uniform(0.45, 0.7)) if sunny else 1.0, lean=float(rng.uniform(-0.8, 0.8)))
    haze = pick(rng, ((200, 208, 215), (215, 200, 180), (170, 175, 182)))
    canvas = Canvas(
        pixels_HW3=np.empty((height, width, 3), dtype=np.float32),
        labels_HW=np.full((height, width), SKY, dtype=np.uint8),
        haze=haze,
        haze_distance=float(rng.uniform(60, 250)),
    )
    half_road = float(rng.uniform(2.8, 5))
    kerb = half_road + float(rng.uniform(1.5, 3.5))
    _sky(canvas, rng, camera)
    _ground(canvas, camera, rng, half_road=half_road, kerb=kerb)
    things = _street_sides(canvas, camera, rng, light, kerb=kerb)
    things += _street_life(canvas, camera, rng, light, half_road=half_road, kerb=kerb)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    return _photograph(canvas.pixels_HW3, rng, sunny=sunny), canvas.labels_HW


Thing = tuple[float, Callable[[], None]]


def _sky(canvas: Canvas, rng: np.random.Generator, camera: Camera) -> None:
    height, width = canvas.labels_HW.shape
    zenith = np.asarray(
        pick(rng, ((110, 150, 205), (185, 190, 195), (150, 165, 185), (225, 190, 150))), dtype=np.float32
    )
    down = np.clip(np.arange(height, dtype=np.float32) / camera.horizon_row, 0, 1)[:, None, None]
    canvas.pixels_HW3[:] = zenith * (1 - down) + np.asarray(canvas.haze, dtype=np.float32) * down
    clouds = noise(rng, height, width, grain_px=64) + 0.4 * noise(rng, height, width, grain_px=16)
    canvas.pixels_HW3[:] += (np.clip(clouds, 0, 2) * rng.uniform(0, 25))[..., None]
    skyline = [(0.0, camera.horizon_row + 2)]
    roof = camera.horizon_row
    for column in np.linspace(0, width, 24):
        skyline += [(float(column), roof), (float(column), roof := camera.horizon_row - rng.uniform(0, 0.09) * height)]
    skyline.append((float(width), camera.horizon_row + 2))
    far_trees = rng.random() < 0.5
    colour = canvas.hazy(pick(rng, LEAVES if far_trees else WALLS), FARTHEST)
    grain = noise(rng, height, width, grain_px=4)
    paint_object(
        canvas,
        [(skyline, colour)],
        label=TREE if far_trees else BUILDING,
        border_px=1,
        grain=grain,
        roughness=0.05,
    )


def _ground(canvas: Canvas, camera: Camera, rng: np.random.Generator, *, half_road: float, kerb: float) -> None:
    """Road, kerbs, pavements and what lies beyond, as strips that meet in the distance."""
    height, width = canvas.labels_HW.shape
    paved = rng.random() < 0.3
    paving = pick(rng, ((150, 145, 140), (125, 122, 120), (160, 140, 125)))
    lawn = pick(rng, ((85, 105, 55), (110, 110, 65), (65, 90, 50)))
    asphalt = pick(rng, ((95, 95, 98), (120, 118, 115), (75, 78, 85), (135, 125, 118)))
    strips = (  # half width, colour, class, from the outside in
        (400.0, paving if paved else lawn, PAVEMENT if paved else GRASS),
        (kerb, paving, PAVEMENT),
        (half_road + 0.2, shade(paving, 1.15), PAVEMENT),
        (half_road, asphalt, ROAD),
    )
    top = int(camera.horizon_row)
    strip_HW = np.zeros((height, width), dtype=np.uint8)  # 0: no ground
    for number, (half, _, _) in enumerate(strips, start=1):
        ends = ((-half, 0.5), (-half, 4 * FARTHEST), (half, 4 * FARTHEST), (half, 0.5))
        fill_polygon(strip_HW, [camera.project(x=x, y=0, z=z) for x, z in ends], number)
    strip_hW, ground_hW = strip_HW[top:], strip_HW[top:] > 0
    classes = np.array([SKY, *(label for _, _, label in strips)], dtype=np.uint8)
    np.copyto(canvas.labels_HW[top:], classes.take(strip_hW), where=ground_hW)
    colours = np.array([(0, 0, 0), *(colour for _, colour, _ in strips)], dtype=np.float32).take(strip_hW, axis=0)
    rows = height - top
    colours *= (1 + 0.07 * noise(rng, rows, width, grain_px=1) + 0.05 * noise(rng, rows, width, grain_px=16))[..., None]
    near_share = np.clip((np.arange(top, height) - camera.horizon_row) / (0.25 * height), 0.4, 1).astype(np.float32)
    haze = np.asarray(canvas.haze, dtype=np.float32)
    np.copyto(canvas.pixels_HW3[top:], haze + (colours - haze) * near_share[:, None, None], where=ground_hW[..., None])
    _road_markings(canvas, camera, rng, half_road=half_road, kerb=kerb)


def _road_markings(canvas: Canvas, camera: Camera, rng: np.random.Generator, *, half_road: float, kerb: float) -> None:
    """Joints of paving stones, a dashed line, sometimes a zebra crossing."""

    def rectangle(left: float, right: float, near: float, far: float) -> list[tuple[float, float]]:
        ends = ((left, near), (right, near), (right, far), (left, far))
        return [camera.project(x=x, y=0, z=z) for x, z in ends]

    for z in np.arange(NEAREST, 25, float(rng.uniform(0.8, 1.6))):
        darken(canvas, rectangle(-kerb, kerb, z, z + 0.05), 0.85, first=PAVEMENT, last=PAVEMENT)
    colour = shade((225, 222, 210), float(rng.uniform(0.75, 1)))
    if rng.random() < 0.75:
        for z in np.arange(float(rng.uniform(1, 4)), 60, float(rng.uniform(4, 7))):
            dash = rectangle(-0.08, 0.08, z, z + 2)
            paint_object(canvas, [(dash, canvas.hazy(colour, z))], label=ROAD, border_px=0)
    if rng.random() < 0.25:
        z = float(rng.uniform(7, 16))
        for x in np.arange(-half_road + 0.3, half_road - 0.5, 1.0):
            bar = rectangle(x, x + 0.5, z, z + 2.5)
            paint_object(canvas, [(bar, canvas.hazy(colour, z))], label=ROAD, border_px=0)


def _street_sides(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, kerb: float
) -> list[Thing]:
    """Buildings, fences and gardens from the camera to the distance, on both sides."""
    things: list[Thing] = []
    for side in (-1, 1):
        z = NEAREST
        built_up = rng.uniform(0.2, 0.75)
        line = kerb + float(rng.choice((0.2, rng.uniform(1, 7))))
        while z < FARTHEST * 0.7:
            far = z + float(rng.uniform(6, 16))
            own = np.random.default_rng(rng.integers(2**63))
            if rng.random() < built_up:
                paint = partial(building, canvas, camera, own, side=side, x=line, near=z, far=far)
                things.append((z, paint))
                if light.shadow < 1 and side * light.lean < 0:
                    reach = side * max(line + side * light.lean * 8, 0.0)
                    ground = [(side * line, z), (reach, z + 1), (reach, far + 1), (side * line, far)]
                    darken(
                        canvas, [camera.project(x=x, y=0, z=d) for x, d in ground], light.shadow, first=ROAD, last=GRASS
                    )
            else:
                if rng.random() < 0.7:
                    things.append((z, partial(fence, canvas, camera, own, x=side * line, near=z, far=far)))
                for _ in range(int(rng.integers(0, 4))):
                    x, depth = side * (line + float(rng.uniform(1.5, 8))), float(rng.uniform(z + 0.5, far))
                    things.append((depth, partial(tree, canvas, camera, own, light, x=x, z=max(depth, 5))))
            z = far + float(rng.uniform(0, 1.5))
    return things


def _street_life(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, half_road: float, kerb: float
) -> list[Thing]:
    """Cars on the road, and people, poles, signs and trees on the pavements."""
    things: list[Thing] = []

    def add(paint: Callable[..., None], x: float, z: float) -> None:
        own = np.random.default_rng(rng.integers(2**63))
        things.append((z, partial(paint, canvas, camera, own, light, x=x, z=z)))

    def on_pavement() -> float:
        return float(rng.choice((-1, 1)) * rng.uniform(half_road + 0.4, kerb - 0.2))

    def distance(near: float) -> float:
        return float(np.exp(rng.uniform(np.log(near), np.log(45.0))))  # as many in each octave

    for _ in range(int(rng.integers(1, 5))):
        lane = rng.choice((-0.5, 0.5)) * half_road if rng.random() < 0.6 else rng.choice((-1, 1)) * (half_road - 1)
        add(car, float(lane), distance(6))
    for _ in range(int(rng.integers(1, 7))):
        add(
            person,
            on_pavement() if rng.random() < 0.85 else float(rng.uniform(-half_road, half_road)),
            distance(6),
        )
    for side in (-1, 1):
        first, step = float(rng.uniform(5, 12)), float(rng.uniform(9, 16))
        for z in np.arange(first, 60, step):
            add(pole, side * (half_road + 0.5), float(z))
    for _ in range(int(rng.integers(1, 5))):
        add(sign, on_pavement(), distance(6))
    for _ in range(int(rng.integers(0, 4))):
        add(tree, float(rng.choice((-1, 1)) * (kerb - 0.4)), distance(8))
    return things


def _photograph(pixels_HW3: Floats, rng: np.random.Generator, *, sunny: bool) -> NDArray[np.uint8]:
    """Light, lens and sensor."""
    height, width = pixels_HW3.shape[:2]
    warmth = float(rng.normal(0, 0.05))
    gain = float(rng.uniform(0.85, 1.2) if sunny else rng.uniform(0.55, 1.0))
    tint = np.array([1 + warmth, 1, 1 - warmth], dtype=np.float32) * np.float32(gain)
    glow = 1 + 0.12 * np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.normal())
    seen = cv2.GaussianBlur(pixels_HW3, (3, 3), float(rng.uniform(0.4, 0.8))) * tint * glow[None, :, None]
    contrast = float(rng.uniform(0.8, 1.15))
    grain = np.stack([noise(rng, height, width, grain_px=1) for _ in range(3)], axis=2) * np.float32(rng.uniform(1, 5))
    developed = (seen - 110) * np.float32(contrast) + 110 + grain
    photograph: NDArray[np.uint8] = np.clip(developed, 0, 255).astype(np.uint8)
    return photograph
