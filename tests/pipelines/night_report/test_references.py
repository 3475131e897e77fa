"""What a model said of its validation images: measured, stored beside the weights, and read by nights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.checkpoints import load_model
from pipelines.ensembles import MemberModel
from pipelines.intake.images import decode_image
from pipelines.night_report import references
from pipelines.night_report.references import (
    QUANTITIES,
    ModelReference,
    measure_reference,
    read_reference,
    write_reference,
)
from pipelines.pictures import png_bytes
from pipelines.serving import ServedModel
from pipelines.shards import PreparedDataset, open_dataset
from segcore.inference import InferenceConfig
from tests.pipelines.tiny_inputs import CLASS_NAMES, random_pairs, write_dataset, write_model

PAIRS = random_pairs(7, seed=3, sizes=((48, 64), (40, 56)))


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> MemberModel:
    folder = write_model(tmp_path_factory.mktemp("model") / "street")
    return MemberModel(
        model_uri=folder,
        model_version="",
        model_folder=folder,
        model_digest=load_model(folder).digest,
        inference=InferenceConfig(),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("data"), PAIRS, images_per_part=3))


@pytest.fixture(scope="module")
def reference(member: MemberModel, dataset: PreparedDataset) -> ModelReference:
    return measure_reference(member, dataset, split="val", device="cpu")


def test_a_reference_says_what_the_network_says_of_each_image(
    reference: ModelReference, member: MemberModel, dataset: PreparedDataset
) -> None:
    assert (reference.split, reference.num_images, reference.class_names) == ("val", 7, CLASS_NAMES)
    assert reference.dataset_digest == dataset.digest
    served = ServedModel(load_model(member.model_folder))
    pixels = [decode_image(png_bytes(pixels_HW3)).pixels_HW3 for pixels_HW3, _ in PAIRS]
    fractions_NC = np.array(
        [np.bincount(np.asarray(served.predict(each)).ravel(), minlength=4) / each[..., 0].size for each in pixels]
    )
    for index, distribution in enumerate(reference.class_fractions):
        assert distribution.mean == pytest.approx(fractions_NC[:, index].mean(), abs=2e-3)
        assert distribution.num_images == 7
    brightness = reference.quantities["brightness"]
    assert brightness.mean == pytest.approx(np.mean([each.mean() / 255 for each in pixels]), rel=1e-5)
    assert reference.quantities["pixels"].mean == pytest.approx(np.mean([each[..., 0].size for each in pixels]))
    assert 0.25 <= reference.quantities["confidence"].mean <= 1
    assert 0 <= reference.quantities["entropy"].mean <= np.log(4)
    assert len(reference.distributions) == 4 + len(QUANTITIES)


def test_measured_again_it_is_the_same(
    reference: ModelReference, member: MemberModel, dataset: PreparedDataset
) -> None:
    assert measure_reference(member, dataset, split="val", device="cpu").digest == reference.digest


def test_few_images_are_taken_where_each_takes_many_network_inputs(
    member: MemberModel, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "MIN_IMAGES", 2)
    monkeypatch.setattr(references, "MAX_NETWORK_INPUTS", 12)
    flipped = replace(member, inference=InferenceConfig(scales=(0.5, 1.0), flip=True))
    found = measure_reference(flipped, dataset, split="val", device="cpu")
    assert found.num_images == 3, "4 inputs an image"
    assert found.inference["flip"] is True


def test_a_folder_keeps_its_digest_and_a_changed_reference_is_refused(
    reference: ModelReference, member: MemberModel, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "street")
    assert read_reference(folder) is None, "folders of older versions have none"
    before = load_model(folder).digest
    write_reference(folder, reference)
    assert load_model(folder).digest == before
    found = read_reference(folder)
    assert found is not None
    assert found == reference
    assert found.digest == reference.digest
    file = Path(folder, "reference.json")
    file.write_text(file.read_text().replace('"val"', '"test"'))
    with pytest.raises(ValueError, match="has changed since it was written"):
        read_reference(folder)
    file.unlink()
    with pytest.raises(ValueError, match="is missing though the model's manifest lists it"):
        read_reference(folder)
