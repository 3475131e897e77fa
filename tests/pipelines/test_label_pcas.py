"""Label PCA folders: written whole, read back bit for bit, refused when damaged or meant for something else."""

import dataclasses
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.label_pca.picture import component_picture, components_png
from pipelines.label_pcas import LabelPCAFolder, load_label_pca, save_label_pca
from pipelines.manifests import MANIFEST
from segcore.label_blocks import BlockStatistics
from segcore.label_code import Dense, LearnedCode, project
from segcore.label_pca import LabelPCA, solve

PALETTE = ((200, 0, 0), (0, 0, 200))


@pytest.fixture(scope="module")
def pca() -> LabelPCA:
    labels_HW = np.zeros((24, 24), np.uint8)
    labels_HW[5:, 9:] = 1
    statistics = BlockStatistics.zero(8, 2)
    statistics.update(labels_HW)
    return solve(statistics, num_components=3)


def save(folder: Path, pca: LabelPCA) -> LabelPCAFolder:
    return save_label_pca(str(folder), pca, files={"note.txt": b"hello"}, content={"class_names": ["sky", "road"]})


def test_a_folder_comes_back_bit_for_bit(pca: LabelPCA, tmp_path: Path) -> None:
    saved = save(tmp_path / "pca", pca)
    loaded = load_label_pca(str(tmp_path / "pca"))
    for name in ("basis_DP", "eigenvalues_P", "mean_D"):
        assert getattr(loaded.code, name).tobytes() == getattr(pca, name).tobytes()
    for name in ("centred", "block_side", "num_classes", "total_energy", "num_blocks"):
        assert getattr(loaded.code, name) == getattr(pca, name)
    assert loaded.digest == saved.digest == hashlib.sha256((tmp_path / "pca" / MANIFEST).read_bytes()).hexdigest()
    assert loaded.manifest == saved.manifest
    assert loaded.manifest["files"]["note.txt"]["num_bytes"] == 5
    assert loaded.class_names == ("sky", "road")


def test_a_learned_code_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def layers(*sizes: int) -> tuple[Dense, ...]:
        return tuple(
            Dense(rng.normal(size=(after, before)), rng.normal(size=after)) for before, after in pairwise(sizes)
        )

    code = LearnedCode(
        solver="autoencoder",
        encoder=layers(8, 5, 3),
        decoder=layers(3, 5, 8),
        mean_code_P=rng.normal(size=3),
        mean_square_P=rng.normal(size=3) ** 2,
        captured_energy=0.5,
        block_side=2,
        num_classes=2,
        num_blocks=7,
    )
    save_label_pca(str(tmp_path / "code"), code, files={}, content={"class_names": ["sky", "road"]})
    loaded = load_label_pca(str(tmp_path / "code")).code
    assert isinstance(loaded, LearnedCode)
    for field in dataclasses.fields(code):
        found, expected = getattr(loaded, field.name), getattr(code, field.name)
        assert type(found) is type(expected)
        for one, other in (
            zip(np.atleast_1d(found), np.atleast_1d(expected), strict=True) if not isinstance(found, tuple) else ()
        ):
            assert one == other
    for found, expected in ((loaded.encoder, code.encoder), (loaded.decoder, code.decoder)):
        assert [part.tobytes() for layer in found for part in layer] == [
            part.tobytes() for layer in expected for part in layer
        ]
    labels_HW = rng.integers(0, 2, (4, 6)).astype(np.uint8)
    np.testing.assert_array_equal(project(loaded, labels_HW), project(code, labels_HW))


def test_damage_is_named(pca: LabelPCA, tmp_path: Path) -> None:
    folder = tmp_path / "pca"
    with pytest.raises(ValueError, match=r"holds no manifest.json.* jobs/fit_label_pca.py"):
        load_label_pca(str(folder))
    save(folder, pca)
    basis = folder / "basis.safetensors"
    whole = basis.read_bytes()
    basis.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="basis.safetensors is corrupt or was changed"):
        load_label_pca(str(folder))
    basis.unlink()
    with pytest.raises(ValueError, match="basis.safetensors is missing; restore it"):
        load_label_pca(str(folder))


def test_another_format_is_refused(pca: LabelPCA, tmp_path: Path) -> None:
    save(tmp_path / "pca", pca)
    manifest = str(tmp_path / "pca" / MANIFEST)
    storage.write_atomic(manifest, storage.json_bytes(storage.read_json(manifest) | {"format_version": 99}))
    with pytest.raises(ValueError, match="label PCA of format 99, this version reads 2"):
        load_label_pca(str(tmp_path / "pca"))


def test_another_class_table_is_refused(pca: LabelPCA, tmp_path: Path) -> None:
    folder = save(tmp_path / "pca", pca)
    folder.check_class_table(("sky", "road"), whose="the dataset")
    with pytest.raises(ValueError, match=r"on 2 classes \(sky, road\), the dataset has 2 \(road, sky\); fit one"):
        folder.check_class_table(("road", "sky"), whose="the dataset")


def test_a_component_is_drawn_in_the_colours_of_its_classes() -> None:
    basis_DP = np.zeros((8, 1))
    basis_DP[[0, 7], 0] = 0.8, -0.6  # class 0 added at the first pixel, class 1 taken away at the last
    pca = LabelPCA(
        basis_DP=basis_DP,
        eigenvalues_P=np.ones(1),
        mean_D=np.zeros(8),
        centred=False,
        block_side=2,
        num_classes=2,
        total_energy=1.0,
        num_blocks=1,
    )
    picture = component_picture(pca, 0, PALETTE)
    assert picture.shape == (4, 9, 3)
    added, taken = picture[1:3, 1:3], picture[1:3, 6:8]
    assert added[0, 0].tolist() == [200, 0, 0]
    assert taken[1, 1].tolist() == [64, 64, 214]  # three quarters of blue on white
    assert (added.reshape(4, 3)[1:] == 255).all()
    assert (taken.reshape(4, 3)[:3] == 255).all()


def test_equal_pictures_have_equal_bytes(pca: LabelPCA) -> None:
    pictures = {components_png(pca, class_names=("sky", "road"), palette=PALETTE, title="blocks") for _ in range(2)}
    assert len(pictures) == 1
    assert pictures.pop().startswith(b"\x89PNG")
