"""Pre-training end to end: class folders, a classifier by Ray Train, and a segmentation network that starts from it."""

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from pipelines import storage, tracking
from pipelines import train as train_module
from pipelines.checkpoints import load_model, read_card
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca
from pipelines.manifests import MANIFEST
from pipelines.nightly.config import SegmentConfig
from pipelines.segment import segment
from pipelines.train import TrainConfig, TrainResult, train
from pipelines.training.inputs import initial_state, open_inputs
from segcore.classifier import ClassifierConfig
from tests.data.class_folders.make import CLASSES
from tests.pipelines.classified_images import prepare_class_folders, tiny_classifier_recipe
from tests.pipelines.learnable_dataset import tiny_recipe, write_learnable_dataset

EPOCHS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> str:
    return prepare_class_folders(tmp_path_factory.mktemp("data"), num_val=8)


@pytest.fixture(scope="module")
def base(data: str, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("runs")
    return TrainConfig(
        recipe=tiny_classifier_recipe(epochs=EPOCHS),
        data=data,
        output=str(folder),
        name="classifier",
        workers=2,
        experiment="tests",
        tracking_uri=tracking.connect(f"sqlite:///{folder}/store.db"),
        register="tiny-classifier",
    )


@pytest.fixture(scope="module")
def finished(base: TrainConfig, ray_session: None) -> TrainResult:
    return train(base)


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back or is refused does so before Ray is asked for anything."""
    monkeypatch.setattr(train_module, "ray_cluster", None)


@pytest.mark.slow
def test_a_classifier_is_trained_logged_and_registered_like_any_network(
    base: TrainConfig, finished: TrainResult
) -> None:
    bundle = load_model(finished.model_folder, task="classification")
    assert (bundle.digest, bundle.card.task, bundle.card.class_names) == (
        finished.model_digest, "classification", CLASSES
    )  # fmt: skip
    assert storage.read_json(f"{finished.model_folder}/config.json")["model_config"]["network"] == "classifier"
    assert bundle.card.scores == finished.scores
    assert finished.model_uri == "models:/tiny-classifier/1"
    assert "val top-1 accuracy" in finished.closing_line
    run = MlflowClient().get_run(finished.run_id)
    assert {"val/top1", "val/top5", "val/cross_entropy", f"val/accuracy/{CLASSES[0]}"} <= run.data.metrics.keys()
    assert run.data.metrics["model/multiply_adds"] < 5_000_000  # of the crop, not of the whole image
    scored = [point.value for point in MlflowClient().get_metric_history(finished.run_id, "val/top1")]
    assert len(scored) == EPOCHS and max(scored) == finished.scores["val/top1"] == scored[finished.best_epoch]
    losses = [point.value for point in MlflowClient().get_metric_history(finished.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    pictures = MlflowClient().list_artifacts(finished.run_id, "pictures")
    assert len(pictures) == train_module.NUM_PICTURES


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_a_finished_classifier_comes_back_and_another_recipe_is_refused(
    base: TrainConfig, finished: TrainResult
) -> None:
    assert train(base) == finished
    model = ClassifierConfig(backbone="mobilenet_v3_small", batch_norm_momentum=0.5, dropout=0.5)
    with pytest.raises(ValueError, match=r"recipe.model.dropout was 0.0 and is 0.5"):
        train(dataclasses.replace(base, recipe=dataclasses.replace(base.recipe, model=model)))


@pytest.mark.slow
def test_a_segmentation_network_starts_from_the_classifier_s_backbone(finished: TrainResult, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    inputs = open_inputs(
        recipe,
        data=write_learnable_dataset(tmp_path),
        label_pca=None,
        train_split="train",
        validation_split="val",
        workers=(1, 1),
        synchronised=False,
    )
    started = safetensors.torch.load(initial_state(recipe, inputs, weights=finished.model_folder))
    classifier = load_model(finished.model_folder, task="classification").model.state_dict()
    backbone = {name: tensor for name, tensor in classifier.items() if name.startswith("backbone.")}
    assert len(backbone) > 100
    for name, tensor in backbone.items():
        assert torch.equal(started[name], tensor), name
    scratch = safetensors.torch.load(initial_state(recipe, inputs, weights="none"))
    assert started.keys() == scratch.keys()
    assert all(torch.equal(started[name], scratch[name]) for name in started if name.startswith("head."))
    assert not torch.equal(started["backbone.body.conv_stem.weight"], scratch["backbone.body.conv_stem.weight"])


@pytest.mark.slow
def test_the_run_says_which_model_it_started_from(finished: TrainResult, base: TrainConfig, tmp_path: Path) -> None:
    """Too many workers, so that the run is recorded and ends before it trains."""
    config = dataclasses.replace(
        base,
        recipe=tiny_recipe(batch_size=12),
        data=write_learnable_dataset(tmp_path),
        name="segmentation",
        weights=finished.model_folder,
        workers=6,
        register=None,
    )
    with pytest.raises(ValueError, match="6 train worker"):
        train(config)
    record = storage.read_json(f"{base.output}/segmentation/run.json")
    assert record["identity"]["weights_digest"] == finished.model_digest
    run = MlflowClient().get_run(record["mlflow_run_id"])
    assert run.data.params["weights_digest"] == finished.model_digest
    assert "weights_digest" not in MlflowClient().get_run(finished.run_id).data.params
    initial = safetensors.torch.load(Path(base.output, "segmentation", "initial.safetensors").read_bytes())
    trained = load_model(finished.model_folder, task="classification").model.state_dict()
    name = "backbone.body.conv_stem.weight"
    assert torch.equal(initial[name], trained[name])
    manifest = Path(finished.model_folder, MANIFEST)
    before = manifest.read_bytes()
    manifest.write_text(before.decode().replace(finished.model_digest, "0" * 64))
    try:
        with pytest.raises(ValueError, match=r"weights_digest was '\w+' and is '0000"):
            train(config)
    finally:
        manifest.write_bytes(before)


@pytest.mark.usefixtures("no_cluster")
def test_data_for_another_task_is_refused_at_the_start(base: TrainConfig, data: str, tmp_path: Path) -> None:
    labelled = write_learnable_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"is a dataset for segmentation .*or a recipe for segmentation"):
        train(dataclasses.replace(base, name="new", data=labelled))
    with pytest.raises(ValueError, match=r"is a dataset for classification .*or a recipe for classification"):
        train(dataclasses.replace(base, name="new", recipe=tiny_recipe()))
    with pytest.raises(ValueError, match=r"is a dataset for classification \(one class per image\)"):
        fit_label_pca(FitLabelPCAConfig(data=data, output=str(tmp_path / "pca")))
    with pytest.raises(ValueError, match="recipe 'crops.mobilenet_v3_small' has no data-dependent decoder"):
        fit_label_pca(FitLabelPCAConfig(data=labelled, output=str(tmp_path / "pca"), recipe="crops.mobilenet_v3_small"))


@pytest.mark.slow
def test_stages_for_segmentation_refuse_a_classifier(
    base: TrainConfig, finished: TrainResult, data: str, tmp_path: Path
) -> None:
    message = r"model folder '.*' holds an image classifier, expected a segmentation network; .*--weights FOLDER"
    labelled = write_learnable_dataset(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_model(finished.model_folder)
    with pytest.raises(ValueError, match=message):
        read_card(finished.model_folder)
    with pytest.raises(ValueError, match=message):
        evaluate(
            EvaluateConfig(
                model=finished.model_uri,
                data=labelled,
                output=str(tmp_path / "scores"),
                tracking_uri=base.tracking_uri,
            )
        )
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        segment(
            SegmentConfig(
                model=finished.model_folder,
                images=str(images),
                tables=str(tmp_path / "tables"),
                tracking_uri=base.tracking_uri,
            )
        )


def test_recipe_and_augmentation_must_be_of_one_task() -> None:
    with pytest.raises(ValueError, match="network is for classification and the augmentation a AugmentConfig; give"):
        dataclasses.replace(tiny_classifier_recipe(), augment=tiny_recipe().augment)
    with pytest.raises(ValueError, match="network is for segmentation and the augmentation a ClassificationAugment"):
        dataclasses.replace(tiny_recipe(), augment=tiny_classifier_recipe().augment)
