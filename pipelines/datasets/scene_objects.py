"""What stands in a generated street: buildings, fences, trees, cars, people, poles and signs, lengths in metres."""

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.datasets.scene_canvas import (
    Camera,
    Canvas,
    Colour,
    Floats,
    Points,
    darken,
    ellipse,
    noise,
    paint_bars,
    paint_masked,
    paint_object,
    paint_plane,
)

SKY, BUILDING, ROAD, PAVEMENT, GRASS, TREE, CAR, PERSON, POLE, SIGN, FENCE = range(11)
TEXELS_PER_METRE = 8

# Many walls, cars and clothes have the colours of road, sky or tree: colour alone does not tell a class.
WALLS: tuple[Colour, ...] = (
    (150, 140, 130), (120, 118, 120), (165, 95, 75), (190, 175, 145), (205, 200, 190), (105, 85, 75), (140, 150, 165),
    (125, 135, 110),
)  # fmt: skip
LEAVES: tuple[Colour, ...] = ((70, 95, 45), (45, 75, 40), (95, 105, 50), (120, 100, 45), (80, 85, 70))
PAINTS: tuple[Colour, ...] = (
    (180, 180, 185), (40, 42, 48), (225, 225, 225), (140, 25, 25), (35, 55, 110), (95, 100, 105), (60, 85, 60),
    (150, 130, 100),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (45, 45, 55), (160, 40, 40), (60, 80, 130), (190, 185, 175), (90, 90, 60), (200, 150, 50), (110, 110, 115),
)  # fmt: skip
SKINS: tuple[Colour, ...] = ((225, 180, 150), (175, 125, 95), (105, 70, 50))
METALS: tuple[Colour, ...] = ((75, 78, 80), (140, 142, 145), (45, 55, 50), (110, 95, 80))


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """Where shadows fall.

    Attributes:
        shadow: factor of pixels in shadow; 1 = no shadows.
        lean: metres to the right that the shadow of a thing one metre high reaches.
    """

    shadow: float
    lean: float


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], *, spread: float = 12) -> Colour:
    """One of the colours, a little off."""
    red, green, blue = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3)
    return float(red), float(green), float(blue)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, brighter or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """An upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def facade(rng: np.random.Generator, *, length: float, height: float, wall: Colour) -> Floats:
    """A wall with windows, TEXELS_PER_METRE fine, seen from the front."""
    rows, columns = max(int(height * TEXELS_PER_METRE), 8), max(int(length * TEXELS_PER_METRE), 8)
    grain = 1 + 0.05 * noise(rng, rows, columns, grain_px=1) + 0.06 * noise(rng, rows, columns, grain_px=16)
    texture: Floats = grain[..., None] * np.asarray(wall, dtype=np.float32)
    if rng.random() < 0.4:
        texture[:: int(rng.integers(3, 6))] *= 0.85  # courses of bricks
    storey, bay = int(rng.uniform(2.6, 3.6) * TEXELS_PER_METRE), int(rng.uniform(1.8, 3.4) * TEXELS_PER_METRE)
    pane_rows, pane_columns = int(storey * rng.uniform(0.45, 0.65)), int(bay * rng.uniform(0.4, 0.7))
    glass, frame = pick(rng, ((45, 55, 70), (80, 95, 115), (30, 30, 32))), pick(rng, ((220, 220, 215), (70, 60, 50)))
    for top in range(rows - storey, -storey, -storey):
        first = top + (storey - pane_rows) // 3
        for left in range((bay - pane_columns) // 2, columns - pane_columns // 2, bay):
            texture[max(first - 1, 0) : first + pane_rows + 1, left - 1 : left + pane_columns + 1] = frame
            pane = shade(glass, float(rng.uniform(0.6, 1.9)))
            texture[max(first, 0) : first + pane_rows, left : left + pane_columns] = pane
    return texture


def building(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, *, side: int, x: float, near: float, far: float
) -> None:
    """A block along the street from `near` to `far`; `side` is -1 on the left, 1 on the right."""
    height, wall = float(rng.uniform(4, 16)), pick(rng, WALLS)
    light = 1 + 0.12 * side * float(rng.choice((-1, 1)))
    texture = facade(rng, length=far - near, height=height, wall=shade(wall, light))
    corners = [camera.project(x=side * x, y=y, z=z) for y, z in ((height, near), (height, far), (0, far), (0, near))]
    paint_plane(canvas, haze_over(canvas, texture, (near + far) / 2), corners, label=BUILDING, border_px=1)
    depth = float(rng.uniform(6, 14))
    front = facade(rng, length=depth, height=height, wall=shade(wall, 2 - light))
    ends = (x, x + depth) if side > 0 else (-x - depth, -x)
    edges = [
        camera.project(x=end, y=y, z=near)
        for end, y in ((ends[0], height), (ends[1], height), (ends[1], 0), (ends[0], 0))
    ]
    paint_plane(canvas, haze_over(canvas, front, near), edges, label=BUILDING, border_px=1)


def haze_over(canvas: Canvas, texture: Floats, z: float) -> Floats:
    """A texture as seen from z metres away."""
    share = 1 - 0.5 ** (z / canvas.haze_distance)
    hazy: Floats = texture * np.float32(1 - share) + np.asarray(canvas.haze, dtype=np.float32) * np.float32(share)
    return hazy


def fence(canvas: Canvas, camera: Camera, rng: np.random.Generator, *, x: float, near: float, far: float) -> None:
    """Rails and pickets along the street; between the pickets one sees what is behind, labelled fence all the same."""
    height = float(rng.uniform(1.0, 1.9))
    corners = [camera.project(x=x, y=y, z=z) for y, z in ((height, near), (height, far), (0, far), (0, near))]
    colour = pick(rng, ((90, 70, 50), (60, 62, 60), (200, 200, 195), (110, 110, 105)))
    rows, columns = int(height * 12), max(int((far - near) * 12), 12)
    bars = np.zeros((rows, columns), dtype=np.float32)
    pitch = int(rng.integers(3, 7))
    bars[:, ::pitch] = bars[:, 1::pitch] = 1
    for rail in (0.1, 0.8):
        bars[int(rows * rail) : int(rows * rail) + 2] = 1
    paint_bars(canvas, bars, canvas.hazy(colour, near), corners, label=FENCE, border_px=1)


def tree(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, x: float, z: float) -> None:
    """A trunk and a ragged crown."""
    scale, height = camera.pixels_per_metre(z), float(rng.uniform(4, 9))
    column, ground = camera.project(x=x, y=0, z=z)
    crown_px = max(int(height * rng.uniform(0.3, 0.45) * scale), 3)
    cast_shadow(canvas, camera, light, x=x, z=z, height=height, radius=crown_px / scale)
    bark = canvas.hazy(pick(rng, ((80, 65, 50), (95, 90, 85), (55, 45, 38))), z)
    trunk = max(0.12 * scale, 0.7)
    top = ground - 0.6 * height * scale
    taper = 0.6 * trunk
    stem = [(column - trunk, ground), (column - taper, top), (column + taper, top), (column + trunk, ground)]
    paint_object(canvas, [(stem, bark)], label=TREE, border_px=1)
    side = min(2 * crown_px, canvas.labels_HW.shape[0])
    yard = np.zeros((side, side), dtype=np.uint8)
    for _ in range(9):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
        centre = (int(side * (0.5 + 0.5 * reach * np.cos(angle))), int(side * (0.5 + 0.5 * reach * np.sin(angle))))
        cv2.circle(yard, centre, max(int(side * rng.uniform(0.12, 0.24)), 1), 1, -1)
    clumps = noise(rng, side, side, grain_px=4 if side < 120 else 16)
    yard &= (clumps > -1.4).astype(np.uint8)
    lit = np.linspace(1.25, 0.7, side, dtype=np.float32)[:, None]
    leaves = np.asarray(pick(rng, LEAVES), dtype=np.float32)
    bright = lit * (1 + 0.22 * clumps + 0.15 * noise(rng, side, side, grain_px=1))
    crown = haze_over(canvas, bright[..., None] * leaves, z)
    paint_masked(
        canvas, crown, yard, top=int(ground - height * scale), left=int(column - side / 2), label=TREE, border_px=1
    )


def car(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, x: float, z: float) -> None:
    """A car seen from behind or from the front, with the flank that the camera sees; z is its nearer end."""
    scale, paint = camera.pixels_per_metre(z), pick(rng, PAINTS, spread=8)
    tall = float(rng.choice((1.4, 1.5, 1.9), p=(0.5, 0.35, 0.15)))

    def at(offset: float, y: float, back: float = 0.0) -> tuple[float, float]:
        return camera.project(x=x + offset, y=y, z=z + back)

    waist = 0.58 * tall
    flank = 0.9 if x < 0 else -0.9  # the side that is turned to the camera
    shadow_of_car = [at(-1, 0), at(1, 0), at(1 + light.lean, 0, 4.2), at(-1 + min(light.lean, 0), 0, 4.2)]
    darken(canvas, shadow_of_car, min(light.shadow, 0.75), first=ROAD, last=GRASS)
    tint, glass = canvas.hazy(paint, z), canvas.hazy(shade(pick(rng, ((50, 58, 68), (90, 100, 110))), 1), z)
    dark, lamp = canvas.hazy((22, 22, 24), z), canvas.hazy(pick(rng, ((170, 30, 25), (235, 230, 210))), z)
    flank_colour, flank_glass = shade(tint, 0.8), shade(glass, 0.75)
    parts: list[tuple[Points, Colour]] = [
        ([at(flank, 0.3), at(flank, waist), at(flank, waist, 4.2), at(flank, 0.3, 4.2)], flank_colour),
        (
            [at(flank, waist), at(0.8 * flank, tall, 0.7), at(0.8 * flank, tall, 2.6), at(flank, waist, 3.6)],
            flank_glass,
        ),
        ([at(-0.72, tall, 0.7), at(0.72, tall, 0.7), at(0.72, tall, 2.6), at(-0.72, tall, 2.6)], tint),
    ]
    for back in (0.75, 3.4):
        wheel = at(flank, 0.32, back)
        radius = 0.32 * camera.pixels_per_metre(z + back)
        parts.append((ellipse(wheel[0], wheel[1], 0.45 * radius, radius), dark))
    for offset in (-0.75, 0.55):
        parts.append(([at(offset, 0.35), at(offset + 0.2, 0.35), at(offset + 0.2, 0), at(offset, 0)], dark))
    parts += [
        ([at(-0.9, 0.25), at(-0.9, waist), at(0.9, waist), at(0.9, 0.25)], tint),
        ([at(-0.85, waist), at(-0.7, tall, 0.6), at(0.7, tall, 0.6), at(0.85, waist)], tint),
        ([at(-0.75, waist), at(-0.62, tall - 0.08, 0.5), at(0.62, tall - 0.08, 0.5), at(0.75, waist)], glass),
        ([at(-0.9, 0.25), at(0.9, 0.25), at(0.9, 0.4), at(-0.9, 0.4)], shade(tint, 0.55)),
        ([at(-0.25, 0.42), at(0.25, 0.42), at(0.25, 0.54), at(-0.25, 0.54)], canvas.hazy((215, 215, 200), z)),
    ]
    for offset in (-0.86, 0.62):
        parts.append(([at(offset, 0.6), at(offset + 0.24, 0.6), at(offset + 0.24, 0.75), at(offset, 0.75)], lamp))
    height, width = canvas.labels_HW.shape
    paint_object(canvas, parts, label=CAR, border_px=2 if scale > 25 else 1,
                 grain=noise(rng, height, width, grain_px=16), roughness=0.07)  # fmt: skip


def person(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, x: float, z: float) -> None:
    """Somebody who stands or walks."""
    tall, stride = float(rng.uniform(1.5, 1.9)), float(rng.uniform(0, 0.28))
    cast_shadow(canvas, camera, light, x=x, z=z, height=tall, radius=0.22)

    def at(offset: float, share: float) -> tuple[float, float]:
        return camera.project(x=x + offset, y=share * tall, z=z)

    skin, coat, trousers = (canvas.hazy(pick(rng, colours), z) for colours in (SKINS, CLOTHES, CLOTHES))
    scale, face = camera.pixels_per_metre(z), at(0, 0.92)
    parts: list[tuple[Points, Colour]] = [
        ([at(-0.13, 0.5), at(0.02, 0.5), at(stride - 0.02, 0), at(stride - 0.14, 0)], trousers),
        ([at(-0.02, 0.5), at(0.13, 0.5), at(0.14 - stride, 0), at(0.02 - stride, 0)], shade(trousers, 0.85)),
        (
            [at(-0.2, 0.82), at(-0.12, 0.82), at(-0.14 - stride / 2, 0.45), at(-0.22 - stride / 2, 0.45)],
            shade(coat, 0.8),
        ),
        ([at(0.2, 0.82), at(0.12, 0.82), at(0.14 + stride / 2, 0.45), at(0.22 + stride / 2, 0.45)], shade(coat, 0.8)),
        ([at(-0.17, 0.84), at(0.17, 0.84), at(0.16, 0.46), at(-0.16, 0.46)], coat),
        (ellipse(face[0], face[1], 0.1 * scale, 0.14 * scale), skin),
        (ellipse(face[0], face[1] - 0.06 * scale, 0.1 * scale, 0.08 * scale), canvas.hazy((50, 40, 32), z)),
    ]
    paint_object(canvas, parts, label=PERSON, border_px=1)


def pole(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, x: float, z: float) -> None:
    """A lamp post, 2 to 4 px thin at any distance, whose arm reaches over the road."""
    height = float(rng.uniform(4.5, 7))
    colour, half = canvas.hazy(pick(rng, METALS), z), _half_width(canvas, camera, z)
    cast_shadow(canvas, camera, light, x=x, z=z, height=height, radius=0.08)
    column, ground = camera.project(x=x, y=0, z=z)
    _, top = camera.project(x=x, y=height, z=z)
    reach, _ = camera.project(x=x - np.sign(x) * 1.4, y=0, z=z)
    parts: list[tuple[Points, Colour]] = [(box(column - half, top, column + half, ground), colour)]
    if rng.random() < 0.6:
        parts.append((box(min(column, reach), top, max(column, reach), top + half), colour))
        parts.append((box(reach - 2 * half, top, reach + 2 * half, top + 2 * half), shade(colour, 1.3)))
    paint_object(canvas, parts, label=POLE, border_px=1)


def sign(canvas: Canvas, camera: Camera, rng: np.random.Generator, light: Light, *, x: float, z: float) -> None:
    """A round, three-cornered or square traffic sign, or a traffic light, on a thin pole."""
    height, radius = float(rng.uniform(2.2, 3)), float(rng.uniform(0.3, 0.45))
    metal, half = canvas.hazy(pick(rng, METALS), z), _half_width(canvas, camera, z)
    cast_shadow(canvas, camera, light, x=x, z=z, height=height, radius=0.08)
    column, ground = camera.project(x=x, y=0, z=z)
    _, middle = camera.project(x=x, y=height, z=z)
    paint_object(canvas, [(box(column - half, middle, column + half, ground), metal)], label=POLE, border_px=1)
    size = max(radius * camera.pixels_per_metre(z), 2.5)
    rim, plate = (
        canvas.hazy((185, 30, 35), z),
        canvas.hazy(pick(rng, ((235, 235, 235), (35, 70, 160), (225, 185, 40))), z),
    )
    kind = rng.integers(4)
    if kind == 0:
        parts = [(ellipse(column, middle, size, size), rim), (ellipse(column, middle, 0.7 * size, 0.7 * size), plate)]
    elif kind == 1:
        parts = [(ellipse(column, middle, 1.2 * size, 1.2 * size, corners=3), rim),
                 (ellipse(column, middle, 0.75 * size, 0.75 * size, corners=3), plate)]  # fmt: skip
    elif kind == 2:
        parts = [(box(column - size, middle - size, column + size, middle + size), plate),
                 (ellipse(column, middle, 0.5 * size, 0.6 * size, corners=5), shade(plate, 0.4))]  # fmt: skip
    else:
        lit = int(rng.integers(3))
        lamps = [(210, 40, 35), (225, 170, 40), (50, 190, 90)]
        housing = box(column - 0.6 * size, middle - 1.5 * size, column + 0.6 * size, middle + 1.5 * size)
        parts = [(housing, (28, 28, 28)),
                 (ellipse(column, middle + (lit - 1) * size, 0.4 * size, 0.4 * size), lamps[lit])]  # fmt: skip
    paint_object(canvas, parts, label=SIGN, border_px=1)


def cast_shadow(
    canvas: Canvas, camera: Camera, light: Light, *, x: float, z: float, height: float, radius: float
) -> None:
    """The shadow of an upright thing: a strip on the ground from its foot."""
    if light.shadow >= 1:
        return
    end = x + light.lean * height
    strip = [(x, z - radius), (end, z - radius + 0.2 * height), (end, z + radius + 0.2 * height), (x, z + radius)]
    darken(canvas, [camera.project(x=u, y=0, z=max(w, 1.0)) for u, w in strip], light.shadow, first=ROAD, last=GRASS)


def _half_width(canvas: Canvas, camera: Camera, z: float) -> float:
    """Half of 2 to 4 px at 240 rows: in between by distance. Polygons include their edges, so that 0.5 paints 2 px."""
    unit: float = canvas.labels_HW.shape[0] / 240
    return unit * min(max(0.07 * camera.pixels_per_metre(z), 0.5), 1.5)
