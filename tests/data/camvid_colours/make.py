"""Fake CamVid as its authors publish it: frames, labels in 32 colours with `_L` in their names, label_colors.txt."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.fake_files import every_value, write_image

COLOURS = """\
64 128 64	Animal
192 0 128	Archway
0 128 192	Bicyclist
0 128 64	Bridge
128 0 0		Building
64 0 128	Car
64 0 192	CartLuggagePram
192 128 64	Child
192 192 128	Column_Pole
64 64 128	Fence
128 0 192	LaneMkgsDriv
192 0 64	LaneMkgsNonDriv
128 128 64	Misc_Text
192 0 192	MotorcycleScooter
128 64 64	OtherMoving
64 192 128	ParkingBlock
64 64 0		Pedestrian
128 64 128	Road
128 128 192	RoadShoulder
0 0 192		Sidewalk
192 128 128	SignSymbol
128 128 128	Sky
64 128 192	SUVPickupTruck
0 0 64		TrafficCone
0 64 64		TrafficLight
192 64 128	Train
128 128 0	Tree
192 128 192	Truck_Bus
64 0 64		Tunnel
192 192 0	VegetationMisc
0 0 0		Void
64 192 0	Wall
"""
FRAMES = ("0001TP_006690", "0001TP_006720", "0006R0_f00930", "0016E5_00390", "Seq05VD_f00000")


def make_camvid_colours(folder: Path, *, frames: tuple[str, ...] = FRAMES, height: int = 24, width: int = 32) -> Path:
    """Frames of noise whose labels hold every one of the 32 colours, in the order of label_colors.txt from the upper
    left on. Returns `folder`."""
    colours = np.array([line.split()[:3] for line in COLOURS.splitlines()], np.uint8)
    labels_HW3 = colours[every_value(range(len(colours)), height=height, width=width)]
    (folder / "LabeledApproved_full").mkdir(parents=True)
    for frame in frames:
        write_image(folder / "701_StillsRaw_full" / f"{frame}.png", height=height, width=width)
        Image.fromarray(labels_HW3).save(folder / "LabeledApproved_full" / f"{frame}_L.png")
    (folder / "label_colors.txt").write_text(COLOURS)
    return folder
