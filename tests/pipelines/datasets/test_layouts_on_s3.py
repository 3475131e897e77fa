"""Public layouts in a bucket: listed, read and written as a shard, without a local copy."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import storage
from pipelines.datasets import list_dataset
from pipelines.datasets.camvid_colours import CamVidColoursConfig
from pipelines.datasets.coco_json import CocoJsonConfig
from pipelines.datasets.folder import FolderConfig
from pipelines.datasets.hf_parquet import HfParquetConfig
from pipelines.datasets.kitti import KITTIConfig
from pipelines.datasets.listing import DatasetListing
from pipelines.datasets.mapillary import MapillaryConfig
from pipelines.intake.labels import decode_labels
from pipelines.object_store import ObjectStore
from pipelines.prepare_shard import Shard, ShardJob, prepare_shard, segmentation_rows
from pipelines.shards import parse_part, part_path
from tests.data.camvid_colours.make import make_camvid_colours
from tests.data.coco_json.make import make_coco
from tests.data.folder.make import make_folder
from tests.data.hf_parquet.make import make_hf_parquet
from tests.data.kitti.make import make_kitti
from tests.data.mapillary.make import make_mapillary
from tests.pipelines.s3_servers import S3Server, moto_server

Layout = tuple[Callable[[Path], object], Callable[[str], Any]]

LAYOUTS: dict[str, Layout] = {
    "camvid_colours": (make_camvid_colours, lambda root: CamVidColoursConfig(root=root)),
    "kitti": (partial(make_kitti, num_images=4), lambda root: KITTIConfig(root=root)),
    "mapillary": (make_mapillary, lambda root: MapillaryConfig(root=root, version="v2.0")),
    "coco_json": (
        make_coco,
        lambda root: CocoJsonConfig(
            annotations=(f"{root}/annotations/instances_val2017.json",), images=(f"{root}/val2017",)
        ),
    ),
    "hf_parquet": (make_hf_parquet, lambda root: HfParquetConfig(root=f"{root}/data", classes=f"{root}/classes.yaml")),
    "folder": (
        make_folder,
        lambda root: FolderConfig(images=f"{root}/images", labels=f"{root}/labels", classes=f"{root}/classes.yaml"),
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_server() as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    ObjectStore.clear_instance_cache()  # a process has one environment; this one has several
    yield f"s3://{server.make_bucket()}"
    ObjectStore.clear_instance_cache()


def rows_of(listing: DatasetListing, output: str) -> list[dict[str, Any]]:
    """All samples as the rows of one part."""
    job = ShardJob(
        output=output,
        plan_digest="p",
        task="segmentation",
        num_classes=len(listing.class_table.names),
        make_rows=partial(segmentation_rows, class_table=listing.class_table, read=listing.read),
        resume=False,
    )
    record = prepare_shard(Shard(split="train", index=0, samples=listing.samples), job)
    assert record.failures == ()
    uri = storage.join(output, part_path("train", 0))
    columns = ("image_id", "label", "class_pixels")
    rows = parse_part(storage.read_bytes(uri), name=uri, sha256=record.sha256, columns=columns).to_pylist()
    return [row | {"label": decode_labels(row["label"])} for row in rows]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_in_a_bucket_gives_the_rows_that_it_gives_in_a_folder(name: str, bucket: str, tmp_path: Path) -> None:
    make, config_of = LAYOUTS[name]
    make(tmp_path / "raw")
    for path in (tmp_path / "raw").rglob("*"):
        if path.is_file():
            storage.write_atomic(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    here, there = list_dataset(config_of(str(tmp_path / "raw"))), list_dataset(config_of(f"{bucket}/raw"))
    assert isinstance(here, DatasetListing) and isinstance(there, DatasetListing)
    assert here.name == there.name == name
    assert here.class_table == there.class_table
    assert all(sample.image_uri.startswith(f"{bucket}/raw/") for sample in there.samples)
    expected, found = rows_of(here, str(tmp_path / "out")), rows_of(there, f"{bucket}/out")
    assert len(found) == len(there.samples) >= 2
    for row, twin in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row.pop("label"), twin.pop("label"))
        assert row == twin
        assert sum(row["class_pixels"]) > 0
