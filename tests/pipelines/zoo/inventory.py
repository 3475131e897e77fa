"""Every specimen of the zoo."""

from tests.pipelines.zoo.jpeg import jpeg_specimens
from tests.pipelines.zoo.others import other_specimens
from tests.pipelines.zoo.png import png_specimens
from tests.pipelines.zoo.specimen import Specimen
from tests.pipelines.zoo.tiff import tiff_specimens


def specimens() -> list[Specimen]:
    """All, with different names."""
    found = [*jpeg_specimens(), *png_specimens(), *tiff_specimens(), *other_specimens()]
    names = [each.name for each in found]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return found
