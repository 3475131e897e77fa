"""mIoU* is what label recovery measures on the split, and where it cannot be had the reason is said."""

import pytest

from pipelines.comparison.bounds import load_codes, measure_bounds
from pipelines.comparison.runs import ComparedRun
from pipelines.label_pcas import LabelPCAFolder
from pipelines.shards import PreparedDataset, open_dataset
from segcore.label_pca import LabelPCA
from segcore.label_recovery import Recovery
from segcore.metrics import scores
from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig, DUpsamplingConfig
from tests.pipelines.compared_runs import compared_run
from tests.pipelines.tiny_inputs import CLASS_NAMES, random_pairs, write_dataset, write_label_pca

SIDE, COMPONENTS, FITTED = 16, 3, 8
PAIRS = random_pairs(5, seed=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("data"), PAIRS, images_per_part=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> LabelPCAFolder:
    return write_label_pca(tmp_path_factory.mktemp("pca"), PAIRS, block_side=SIDE, num_components=FITTED)


def bilinear_run(name: str, *, features: tuple[int, ...] = ()) -> ComparedRun:
    return compared_run(name, model_config=DeepLabV3PlusConfig(output_stride=16, low_level_features=features))


def coded_run(name: str, uri: str, digest: str, *, components: int = COMPONENTS) -> ComparedRun:
    config = DUpsamplingConfig(output_stride=SIDE, dupsample=DUpsampleConfig(num_components=components))
    return compared_run(name, model_config=config, label_pca=uri, settings={"label_pca_digest": digest})


def expected(pca: LabelPCA, method: str, *, images: list[int]) -> float:
    recovery = Recovery.zero(len(CLASS_NAMES))
    for index in images:
        recovery.update(pca, PAIRS[index][1])
    return scores(recovery.confusion[method]).mean_iou


def test_bounds_are_label_recovery_s_at_the_network_s_own_length(
    dataset: PreparedDataset, folder: LabelPCAFolder
) -> None:
    assert isinstance(folder.code, LabelPCA)
    runs = [
        bilinear_run("coarse"),
        bilinear_run("fine", features=(4,)),
        coded_run("short", folder.uri, folder.digest),
        coded_run("whole", folder.uri, folder.digest, components=FITTED),
        coded_run("again", folder.uri, folder.digest),
    ]
    found = measure_bounds(runs, load_codes(runs), dataset, split="val", num_images=3)
    bounds = {run.name: found[run.run_id] for run in runs}
    assert {bound.num_images for bound in bounds.values()} == {3}
    images = [0, 2, 4]
    assert bounds["coarse"].mean_iou == pytest.approx(expected(folder.code, "bilinear", images=images))
    assert bounds["whole"].mean_iou == pytest.approx(expected(folder.code, "basis", images=images))
    short = expected(folder.code.leading(COMPONENTS), "basis", images=images)
    assert bounds["short"].mean_iou == bounds["again"].mean_iou == pytest.approx(short)
    assert short < expected(folder.code, "basis", images=images)
    fine, coarse = bounds["fine"].mean_iou, bounds["coarse"].mean_iou
    assert fine is not None and coarse is not None and fine > coarse, "blocks of 4 keep more than blocks of 16"


def test_a_label_code_that_is_gone_or_was_replaced_is_said_and_the_others_are_measured(
    dataset: PreparedDataset, folder: LabelPCAFolder
) -> None:
    runs = [
        coded_run("gone", "nowhere/pca", "1" * 64),
        coded_run("replaced", folder.uri, "2" * 64),
        coded_run("moved", "nowhere/pca", folder.digest),
        coded_run("there", folder.uri, folder.digest),
        compared_run("other", class_names=("a", "b")),
    ]
    found = measure_bounds(runs, load_codes(runs), dataset, split="val", num_images=2)
    bounds = {run.name: found[run.run_id] for run in runs}
    assert "the label PCA of run 'gone' cannot be read" in bounds["gone"].note
    assert "holds another label PCA than run 'replaced' was trained with" in bounds["replaced"].note
    assert "class table of run 'other' is not that of" in bounds["other"].note
    assert [bounds[name].mean_iou for name in ("gone", "replaced", "other")] == [None] * 3
    assert bounds["moved"] == bounds["there"], "one run's folder serves another of the same digest"
    assert bounds["there"].mean_iou is not None and not bounds["there"].note


def test_without_a_dataset_there_are_no_bounds() -> None:
    found = measure_bounds([bilinear_run("a")], {}, None, split="val", num_images=2)
    assert [bound.mean_iou for bound in found.values()] == [None]
    assert "give --data" in next(iter(found.values())).note
