"""The colours in which classes are shown: by default colours that colour-blind people can tell apart.

They were chosen one after another, each as far as possible from all before it, from black (ignored pixels) and from the
grey of their hatch; so the first n serve n classes. Distance is CIEDE2000, the least of normal vision (which counts
0.7, so that most people get more) and of protanopia, deuteranopia and tritanopia as Machado's matrices simulate them.
Candidates are the RGB colours of multiples of 15 with a lightness of 20 to 95 and a chroma of at least 25: greys would
be lost in a photograph. tests/pipelines/test_palettes.py repeats the choice; docs/pictures.md has the distances.
"""

from typing import Literal

Palette = tuple[tuple[int, int, int], ...]

PaletteChoice = Literal["distinct", "official"]

BLACK = (0, 0, 0)

_DISTINCT = """
    e10096 96ff00 f0d2ff 0f8700 4b2d00 4b96ff e19687 2d2d5a a5b400 694bff d2f0c3 960f3c 69d2c3 78875a a596c3 0000c3
    b47887 6978a5 f01e00 e1c378 a5b4ff 693c5a 004b2d 960f87 69a54b f0f087 875a3c b4fff0 4b785a 5a4b0f 3c5ac3 b478d2
    690f3c ff78a5 a55a78 6900f0 4ba596 4b78ff 96d2a5 4b0087 b41e78 3c3cb4 ffa5c3 96783c a5d23c 875a87 0f78c3 e1783c
    d2a5d2 d25a78 69001e f0e1a5 005a4b d2a569 3cf0d2 8787b4 d2c3ff d21e69 e187e1 b44b4b 00c387 873c4b a59669 a56900
    a50f0f 0f9678 f05a96 87e1e1 b45ae1 782d69 3c69a5 692d1e c3d296 78962d d2e15a 2d692d 87a5ff b4c35a 5a1e78 d296b4
    b4004b a53c2d 3c8769 00b4e1 5af000 783ce1 c34bc3 96ffe1 4b2dd2 876996 871e4b 0f2da5 4b4b96 b46987 d27887 f01e5a
    ffc3b4 96b44b c32d3c 006969 5a784b 005a78 5a1e4b d2ff69 a578a5 78000f 1eb4a5 4b87ff c300b4 d269b4 87a578 871e2d
    873c1e ffb4c3 3ce178 c35a2d 2d7869 c36969 a52d5a 0ffff0 c387b4 f08778 78c396 b49600 962d69 b43c87 e14ba5 785ae1
    a54b69 964b0f a5ffb4 69b45a 96005a 78002d 4b3c78 87c33c 87e1b4 b45a87 69874b 963c87 a587c3 d296d2 d2b4e1 a5ffff
    e1a596 690069 69d2f0 4be1d2 f04b3c 6978d2 c37878 e196c3 781eff 781e3c a55a5a b4a52d 690096 9687e1 d22da5 ff0096
    a569b4 d2f096 872d96 00ff69 7800c3 6969b4 d28796 c387d2 e1b4f0 f0d2a5 d26987 e11e78 4b00e1 693c87 a50fd2 87f0e1
    69d287 2d00a5 874b1e c3d25a a5a5f0 e1d287 5ac3c3 f02dff f096b4 3c87c3 e178a5 693c1e b4f0d2 4b9669 c3b478 878700
    3c2d87 ff5a78 9600a5 0fa55a e11ed2 c3c300 5a873c b41ef0 f00fb4 1e4ba5 87782d f0d200 a5005a c3874b a53ca5 ff2d0f
    f087b4 78d269 9696f0 f0b4a5 963c4b 0f3c00 c3003c 2df087 96b487 5a0f5a 695aff a56996 4b0fb4 f0e178 e196e1 c3ffc3
    3cffd2 3c87e1 963c69 69963c e1f04b 5aa569 691e69 d2e196 874bb4 ffa596 b43c5a d2ff96 ff4bc3 b4f0b4 f0b469 a54b2d
    a50f2d 5a2d4b d20f5a b469e1 4ba53c 691e1e 784be1 00d24b 9678f0 5a693c ff964b 6996c3 96b4f0 c378a5
"""


def distinct_palette(num_classes: int) -> Palette:
    """The first colours of the list above, 8-bit RGB; for up to 254 classes.

    Raises:
        ValueError: there are more classes, or fewer than none.
    """
    colours = tuple(bytes.fromhex(colour) for colour in _DISTINCT.split())
    if not 0 <= num_classes <= len(colours):
        raise ValueError(f"{num_classes} classes, expected 0 to {len(colours)}: there are no more distinct colours")
    return tuple((colour[0], colour[1], colour[2]) for colour in colours[:num_classes])


def shown_palette(own: Palette, *, choice: PaletteChoice, given: bool) -> Palette:
    """The colours that a dataset's classes are shown in.

    Args:
        own: of the dataset: those that its authors published or its user gave; where nobody did, PASCAL VOC's.
        choice: `distinct` colours, or the dataset's own.
        given: the user gave them, or they were chosen when the images were prepared: they stay.

    Returns:
        As many colours. With `distinct`, the first class that is black stays so: it is a background.
    """
    if given or choice == "official":
        return own
    colours = list(distinct_palette(len(own)))
    if BLACK in own:
        place = own.index(BLACK)
        colours = [*colours[:place], BLACK, *colours[place:-1]]
    return tuple(colours)
