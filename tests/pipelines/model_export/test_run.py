"""Exported models: they give the network's scores, load back, say what they are, and nothing is overwritten."""

import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import storage
from pipelines.checkpoints import ModelBundle, load_model, read_card
from pipelines.export import export_any
from pipelines.manifests import read_manifest, write_manifest
from pipelines.model_export import graphs
from pipelines.model_export.config import ModelExportConfig, ModelFormat
from segcore.models import UNetConfig, blank_model
from tests.pipelines.tiny_inputs import CLASS_NAMES, save_tiny_model, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that is traced in a second."""
    torch.manual_seed(0)
    network = UNetConfig(width=4, padded=True)
    return save_tiny_model(tmp_path_factory.mktemp("unet"), network, blank_model(network, len(CLASS_NAMES)))


def _export(model: str, output: Path, file_format: ModelFormat, **options: Any) -> dict[str, Any]:
    result = export_any(ModelExportConfig(model=model, output=str(output), format=file_format, **options))
    assert result.closing_line.startswith(f"exported the model as {file_format} to {output}")
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


def _logits(bundle: ModelBundle, *, height: int, width: int) -> torch.Tensor:
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits: torch.Tensor = bundle.model(images).logits_NCHW
    return logits


def test_a_hugging_face_folder_loads_back(model: str, tmp_path: Path) -> None:
    manifest = _export(model, tmp_path, "hf")
    before, after = load_model(model), load_model(str(tmp_path))
    assert after.card == before.card and after.digest == before.digest == manifest["digest"]
    assert read_card(str(tmp_path)) == (before.card, before.digest)
    for size in ((32, 32), (45, 67)):
        expected = _logits(before, height=size[0], width=size[1])
        assert torch.equal(_logits(after, height=size[0], width=size[1]), expected)


def test_a_hugging_face_folder_has_that_layout_and_no_pickle(model: str, tmp_path: Path) -> None:
    _export(model, tmp_path, "hf")
    names = {"README.md", "config.json", "manifest.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((tmp_path / "model.safetensors").read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(CLASS_NAMES)}
    assert {name: index for index, name in enumerate(CLASS_NAMES)} == config["label2id"]
    assert (config["model_type"], config["architectures"]) == ("segpipe", ["deeplab_v3plus"])
    card = load_model(model).card
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (tuple(values["image_mean"]), tuple(values["image_std"])) == (card.mean, card.std)
    assert (values["rescale_factor"], values["do_resize"]) == (1 / 255, False)
    header, _, text = (tmp_path / "README.md").read_text().removeprefix("---\n").partition("---\n\n")
    assert "pipeline_tag: image-segmentation\n" in header and text.startswith(f"# {Path(model).parent.name}\n")


def test_a_changed_folder_is_refused(small: str, tmp_path: Path) -> None:
    _export(small, tmp_path, "hf")
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("sky", "sea"))
    with pytest.raises(ValueError, match=r"config\.json has changed since it was written"):
        load_model(str(tmp_path))


def test_a_torch_export_gives_the_scores_of_the_network(small: str, tmp_path: Path) -> None:
    manifest = _export(small, tmp_path, "pt2")
    assert [parity["size"] for parity in manifest["parity"]] == [list(size) for size in graphs.CHECKED_SIZES]
    assert max(parity["difference"] for parity in manifest["parity"]) < 1e-4
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(graphs.METADATA_FILE))
        assert json.loads(archive.read(name))["class_names"] == list(CLASS_NAMES)


def test_an_onnx_export_gives_the_scores_of_the_network(small: str, tmp_path: Path) -> None:
    import onnxruntime

    manifest = _export(small, tmp_path, "onnx")
    assert max(parity["difference"] for parity in manifest["parity"]) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == list(CLASS_NAMES)
    assert json.loads(properties["palette"]) == manifest["palette"]
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, found.name) == ("images", "tensor(uint8)", "logits")
    assert given.shape[1] == 3 and [isinstance(given.shape[axis], str) for axis in (0, 2, 3)] == [True] * 3


def test_a_graph_that_differs_is_not_written(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "export_program", lambda model: None)
    monkeypatch.setitem(graphs._WRITERS, "pt2", lambda program, metadata: b"")
    monkeypatch.setitem(graphs._RUNNERS, "pt2", lambda data: lambda images: np.zeros((*images.shape[:1], 4, 1, 1)))
    with pytest.raises(ValueError, match=r"network 'unet' on unet gives other scores as pt2: at size \(1, 64, 96\)"):
        _export(small, tmp_path, "pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_traced_is_refused(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(program: object, metadata: object) -> bytes:
        try:
            raise RuntimeError("no such operator: x\nand much more")
        except RuntimeError as cause:
            raise ValueError("a page of advice") from cause

    monkeypatch.setattr(graphs, "export_program", lambda model: None)
    monkeypatch.setitem(graphs._WRITERS, "onnx", failing)
    with pytest.raises(
        ValueError, match=r"cannot be exported to onnx: RuntimeError: no such operator: x; choose anoth"
    ):
        _export(small, tmp_path, "onnx")


def test_nothing_is_overwritten(small: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt', which is no part of this export; give an empty --outpu"):
        _export(small, tmp_path, "hf")
    _export(small, tmp_path / "new", "hf")
    before = (tmp_path / "new" / "manifest.json").stat().st_mtime_ns
    _export(small, tmp_path / "new", "hf")
    assert (tmp_path / "new" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a finished model with another format; give another --output"):
        _export(small, tmp_path / "new", "onnx")


def test_an_interrupted_export_is_finished(small: str, tmp_path: Path) -> None:
    first = _export(small, tmp_path, "hf")
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "config.json").write_text("{")
    assert _export(small, tmp_path, "hf") == first
    assert load_model(str(tmp_path)).digest == first["digest"]


def test_scores_of_an_evaluation_stand_in_the_card(model: str, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    storage.write_atomic(str(scores / "scores.json"), storage.json_bytes({"mean_iou": 0.6254, "iou/sky": 0.9}))
    identity = {"model_digest": read_manifest(model, kind="model")["digest"], "dataset_digest": "f" * 64}
    content = {"identity": identity | {"split": "val"}, "num_images": 101}
    write_manifest(str(scores), kind="evaluation", content=content)
    _export(model, tmp_path / "out", "hf", scores=str(scores))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| mean_iou | 62.54 % |" in text and "split `val`, 101 images, dataset `ffffffffffff`" in text
    assert "| 0 | sky | `#4682b4` | 90.00 % |" in text
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match="holds the scores of model .*, expected those of .*; give the evaluation of thi"
    ):
        _export(other, tmp_path / "out2", "hf", scores=str(scores))


def test_the_command_line_has_a_subcommand_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.export import parse

    monkeypatch.setattr(sys, "argv", ["jobs/export.py", "model", "--model", "m", "--output", "o", "--format", "onnx"])
    assert parse() == ModelExportConfig(model="m", output="o", format="onnx")
