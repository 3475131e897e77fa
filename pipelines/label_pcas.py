"""The label PCA on storage.

    <uri>/basis.safetensors     basis_DP, eigenvalues_P, mean_D: float64, little endian
    <uri>/recovery.json         how well true labels survive the code, by split, method and class
    <uri>/components.png        the leading basis blocks in the classes' colours
    <uri>/manifest.json         written last: settings, digests of dataset, statistics and files, counts, short scores

The same labels and settings give the same bytes, for any number of workers, on one machine with one set of packages.
"""

from dataclasses import dataclass
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from pipelines import manifests, storage
from segcore.label_pca import LabelPCA

KIND = "label_pca"
FORMAT_VERSION = 1
BASIS_FILE = "basis.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelPCAFolder:
    """A loaded label PCA.

    Attributes:
        pca: the basis.
        manifest: the rest of the folder.
        digest: SHA-256 of `manifest.json`, which holds those of the files.
        uri: where it was loaded from.
    """

    pca: LabelPCA
    manifest: dict[str, Any]
    digest: str
    uri: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class table that the labels were counted with."""
        return tuple(self.manifest["class_names"])

    def check_class_table(self, class_names: tuple[str, ...], *, whose: str) -> None:
        """Refuse a basis whose classes are not, in this order, those of the data or network that it is meant for.

        Args:
            class_names: of the other side.
            whose: the other side, for the message: "the dataset data/camvid".

        Raises:
            ValueError: names or order differ.
        """
        if self.class_names != class_names:
            raise ValueError(
                f"label PCA {self.uri!r} was fitted on {len(self.class_names)} classes ({_shown(self.class_names)}), "
                f"{whose} has {len(class_names)} ({_shown(class_names)}); fit one on that class table with "
                "jobs/fit_label_pca.py"
            )


def save_label_pca(uri: str, pca: LabelPCA, *, files: dict[str, bytes], content: dict[str, Any]) -> LabelPCAFolder:
    """Write a label PCA folder, its manifest last.

    Args:
        uri: the folder; files of an unfinished run there are replaced.
        pca: the basis.
        files: further files by name.
        content: what the manifest says beside shapes, energies, digests and the code's commit; JSON values only.
    """
    data = {BASIS_FILE: basis_bytes(pca), **files}
    for name, value in data.items():
        storage.write_atomic(storage.join(uri, name), value)
    manifest = manifests.write_manifest(
        uri,
        kind=KIND,
        content={
            **content,
            "format_version": FORMAT_VERSION,
            "block_side": pca.block_side,
            "num_classes": pca.num_classes,
            "num_components": pca.num_components,
            "centred": pca.centred,
            "num_blocks": pca.num_blocks,
            "total_energy": pca.total_energy,
            "captured_energy": pca.captured_energy,
            "files": {name: {"sha256": storage.sha256(value), "num_bytes": len(value)} for name, value in data.items()},
            "code_commit": manifests.code_commit(),
        },
    )
    return LabelPCAFolder(pca=pca, manifest=manifest, digest=manifests.digest(manifest), uri=uri)


def load_label_pca(uri: str) -> LabelPCAFolder:
    """Load a label PCA and prove that its basis is complete and unchanged.

    Raises:
        ValueError: there is no manifest, it is of another kind or version, or the basis is missing or changed.
    """
    manifest = manifests.read_manifest(uri, kind=KIND)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{uri!r} is a label PCA of format {manifest.get('format_version')!r}, this version reads "
            f"{FORMAT_VERSION}; run jobs/fit_label_pca.py again into a new folder"
        )
    path = storage.join(uri, BASIS_FILE)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; restore it, or remove the folder and fit the label PCA again") from None
    if storage.sha256(data) != manifest["files"][BASIS_FILE]["sha256"]:
        raise ValueError(
            f"{path} is corrupt or was changed: its SHA-256 is not the manifest's; "
            "restore it, or remove the folder and fit the label PCA again"
        )
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); fit the label PCA again") from error
    pca = LabelPCA(
        basis_DP=arrays["basis_DP"],
        eigenvalues_P=arrays["eigenvalues_P"],
        mean_D=arrays["mean_D"],
        centred=manifest["centred"],
        block_side=manifest["block_side"],
        num_classes=manifest["num_classes"],
        total_energy=manifest["total_energy"],
        num_blocks=manifest["num_blocks"],
    )
    return LabelPCAFolder(pca=pca, manifest=manifest, digest=manifests.digest(manifest), uri=uri)


def basis_bytes(pca: LabelPCA) -> bytes:
    """Safetensors bytes of the arrays. No metadata: safetensors writes it in an order that changes from run to run."""
    data: bytes = safetensors.numpy.save(
        {"basis_DP": pca.basis_DP, "eigenvalues_P": pca.eigenvalues_P, "mean_D": pca.mean_D}
    )
    return data


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
