"""What a training reads is checked before anything starts, and the label PCA is fitted to the network."""

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pipelines.checkpoints import read_card, read_weights
from pipelines.label_pcas import save_label_pca
from pipelines.recipes import Recipe
from pipelines.shards import open_dataset, read_part
from pipelines.training.batches import decoded
from pipelines.training.inputs import TrainInputs, initial_state, open_inputs
from segcore.copy_paste import CopyPasteConfig
from segcore.label_blocks import BlockStatistics
from segcore.label_pca import LabelPCA, solve
from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig, DUpsamplingConfig, FCNConfig, build_model
from segcore.models.main_loss import LossConfig
from tests.pipelines.learnable_dataset import tiny_recipe, write_learnable_dataset
from tests.pipelines.tiny_inputs import CLASS_NAMES, save_tiny_model, write_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_learnable_dataset(tmp_path_factory.mktemp("data"))


def recipe_with(*, components: int, output_stride: int = 16) -> Recipe:
    model = DUpsamplingConfig(
        backbone="mobilenet_v3_small",
        output_stride=output_stride,
        features=(),
        dupsample=DUpsampleConfig(num_components=components),
        aspp_channels=8,
    )
    return dataclasses.replace(tiny_recipe(), model=model)


def fit(
    data: str, folder: Path, *, block_side: int = 16, components: int = 6, class_names: tuple[str, ...] = CLASS_NAMES
) -> str:
    statistics = BlockStatistics.zero(block_side, len(CLASS_NAMES))
    dataset = open_dataset(data)
    for part in dataset.splits["train"].parts:
        for row in read_part(dataset, part).to_pylist():
            statistics.update(decoded(row)[1].numpy())
    pca = solve(statistics, num_components=components)
    save_label_pca(str(folder), pca, files={}, content={"class_names": list(class_names)})
    return str(folder)


def open_with(recipe: Recipe, data: str, label_pca: str | None) -> TrainInputs:
    return open_inputs(
        recipe,
        data=data,
        label_pca=label_pca,
        train_split="train",
        validation_split="val",
        workers=(1, 1),
        synchronised=False,
    )


def test_more_components_than_the_network_uses_are_cut_off(data: str, tmp_path: Path) -> None:
    whole = open_with(recipe_with(components=6), data, fit(data, tmp_path / "six"))
    cut = open_with(recipe_with(components=4), data, str(tmp_path / "six"))
    assert isinstance(whole.label_pca, LabelPCA) and isinstance(cut.label_pca, LabelPCA)
    assert np.array_equal(cut.label_pca.basis_DP, whole.label_pca.basis_DP[:, :4])
    assert cut.label_pca_digest == whole.label_pca_digest
    assert initial_state(recipe_with(components=4), cut, weights="none")


def test_too_few_components_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"number of components is 6, the network's num_components asks for 8"):
        open_with(recipe_with(components=8), data, fit(data, tmp_path))


def test_another_block_side_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"block side is 8, the network's output stride asks for 16"):
        open_with(recipe_with(components=6), data, fit(data, tmp_path, block_side=8))


def test_another_class_table_is_refused(data: str, tmp_path: Path) -> None:
    label_pca = fit(data, tmp_path, class_names=("sky", "tree (tall)", "road", "never"))
    with pytest.raises(ValueError, match=r"fitted on 4 classes \(sky, tree \(tall\), road, never\)"):
        open_with(recipe_with(components=6), data, label_pca)


def test_a_missing_label_pca_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs --label-pca"):
        open_with(recipe_with(components=6), data, None)
    with pytest.raises(ValueError, match=r"holds no manifest.json.*jobs/fit_label_pca.py"):
        open_with(recipe_with(components=6), data, str(tmp_path / "absent"))


def test_a_warm_up_longer_than_the_training_is_refused_with_epochs_that_suffice(data: str) -> None:
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, warmup_steps=1000))
    with pytest.raises(ValueError, match=r"warms up over 1000 steps .* give --epochs \d+ or more") as refusal:
        open_with(recipe, data, None)
    match = re.search(r"--epochs (\d+)", str(refusal.value))
    assert match is not None
    open_with(dataclasses.replace(recipe, epochs=int(match[1])), data, None)


def test_the_input_policy_is_the_size_of_crops_and_of_typical_images(data: str) -> None:
    policy = open_with(tiny_recipe(), data, None).input_policy
    assert (policy.crop_height, policy.crop_width) == (64, 64)
    assert {policy.image_height, policy.image_width} <= {48, 56, 64}


def test_initial_weights_depend_on_the_seed_alone(data: str) -> None:
    recipe = tiny_recipe()
    inputs = open_with(recipe, data, None)
    assert initial_state(recipe, inputs, weights="none") == initial_state(recipe, inputs, weights="none")
    other = dataclasses.replace(recipe, seed=4)
    assert initial_state(other, inputs, weights="none") != initial_state(recipe, inputs, weights="none")


def test_a_training_starts_from_the_whole_network_of_another(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The decoder as well; a layer that the other has not is as it would be without."""
    given = write_model(tmp_path / "model", seed=5)
    model = read_card(given)[0].model_config
    assert isinstance(model, DeepLabV3PlusConfig)
    recipe = dataclasses.replace(tiny_recipe(), model=model)
    inputs = open_with(recipe, data, None)
    started = safetensors.torch.load(initial_state(recipe, inputs, weights="none", start_from=given))
    whole = read_weights(given)[1]
    assert started.keys() == whole.keys() and all(torch.equal(started[name], whole[name]) for name in whole)
    assert "with initial values" not in caplog.text
    more = dataclasses.replace(recipe, model=dataclasses.replace(model, low_level_features=(4, 2)))
    with caplog.at_level(logging.INFO):
        started = safetensors.torch.load(initial_state(more, inputs, weights="none", start_from=given))
    scratch = safetensors.torch.load(initial_state(more, inputs, weights="none"))
    untouched = started.keys() - whole.keys()
    assert untouched and all(torch.equal(started[name], scratch[name]) for name in untouched)
    assert f"whole network in {given}" in caplog.text and sorted(untouched)[0] in caplog.text


def test_a_network_without_batch_normalisation_takes_one_image_at_a_time(data: str) -> None:
    recipe = dataclasses.replace(tiny_recipe(), batch_size=1)
    with pytest.raises(ValueError, match=r"gives each of 1 worker\(s\) one image, which batch normalisation"):
        open_with(recipe, data, None)
    recipe = dataclasses.replace(recipe, model=FCNConfig(channels=8, width=0.0625))
    assert open_with(recipe, data, None).steps_per_epoch == 38


def test_a_stage_starts_from_the_model_folder_of_the_one_before(data: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = FCNConfig(variant="32s", channels=8, width=0.0625)
    network = build_model(first, len(CLASS_NAMES))
    torch.nn.init.normal_(network.get_parameter("head.scores.32.weight"))
    folder = save_tiny_model(tmp_path / "model", first, network)
    recipe = dataclasses.replace(tiny_recipe(), model=dataclasses.replace(first, variant="16s"))
    state = safetensors.torch.load(
        initial_state(recipe, open_with(recipe, data, None), weights="none", start_from=folder)
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(state.pop(name), tensor)
    assert state.keys() == {"head.scores.16.weight", "head.scores.16.bias"}
    assert not any(tensor.any() for tensor in state.values())


def test_a_batch_that_cannot_be_cut_into_parts_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"1 worker\(s\) 8 image\(s\), which cannot be cut into accumulation 9 parts"):
        open_with(dataclasses.replace(tiny_recipe(), accumulation=9), data, None)
    message = r"one image at a time \(accumulation 8\), which batch normalisation cannot use; give --batch-size 16"
    with pytest.raises(ValueError, match=message):
        open_with(dataclasses.replace(tiny_recipe(), accumulation=8), data, None)
    assert open_with(dataclasses.replace(tiny_recipe(), accumulation=4), data, None).steps_per_epoch == 4


def test_class_weights_and_unknown_classes_are_looked_up_in_the_dataset(data: str) -> None:
    weighted = dataclasses.replace(tiny_recipe(), loss=LossConfig(class_weights="inverse_log"))
    weights = open_with(weighted, data, None).class_weights
    assert len(weights) == 4 and weights[3] == pytest.approx(50.5, abs=0.01)
    assert open_with(tiny_recipe(), data, None).class_weights == ()
    with pytest.raises(ValueError, match=r"--copy-paste.classes names 'car'"):
        open_with(dataclasses.replace(tiny_recipe(), copy_paste=CopyPasteConfig(classes=("car",))), data, None)
