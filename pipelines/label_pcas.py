"""The label PCA on storage.

    <uri>/basis.safetensors     float64, little endian. PCA: basis_DP, eigenvalues_P, mean_D; a learned code: weight and
                                bias of each layer, encoder_0_weight_OI and so on, mean_code_P, mean_square_P
    <uri>/recovery.json         how well true labels survive the code, by split, method and class
    <uri>/components.png        the leading basis blocks in the classes' colours
    <uri>/manifest.json         written last: settings, digests of dataset, statistics and files, counts, short scores

The same labels and settings give the same bytes, for any number of workers, on one machine with one set of packages.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from pipelines import manifests, storage
from segcore.label_code import Dense, LabelCode, LearnedCode
from segcore.label_pca import PCA, LabelPCA

KIND = "label_pca"
FORMAT_VERSION = 2
BASIS_FILE = "basis.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelPCAFolder:
    """A loaded label PCA.

    Attributes:
        code: the label PCA, or a learned code in its place.
        manifest: the rest of the folder.
        digest: SHA-256 of `manifest.json`, which holds those of the files.
        uri: where it was loaded from.
    """

    code: LabelCode
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


def save_label_pca(uri: str, code: LabelCode, *, files: dict[str, bytes], content: dict[str, Any]) -> LabelPCAFolder:
    """Write a label PCA folder, its manifest last.

    Args:
        uri: the folder; files of an unfinished run there are replaced.
        code: the label PCA, or a learned code.
        files: further files by name.
        content: what the manifest says beside shapes, energies, digests and the code's commit; JSON values only.
    """
    data = {BASIS_FILE: safetensors.numpy.save(_arrays(code)), **files}
    for name, value in data.items():
        storage.write_atomic(storage.join(uri, name), value)
    manifest = manifests.write_manifest(
        uri,
        kind=KIND,
        content={
            **content,
            "format_version": FORMAT_VERSION,
            "solver": code.solver,
            "block_side": code.block_side,
            "num_classes": code.num_classes,
            "num_components": code.num_components,
            "num_blocks": code.num_blocks,
            "captured_energy": code.captured_energy,
            **({"centred": code.centred, "total_energy": code.total_energy} if isinstance(code, LabelPCA) else {}),
            "files": {name: {"sha256": storage.sha256(value), "num_bytes": len(value)} for name, value in data.items()},
            "code_commit": manifests.code_commit(),
        },
    )
    return LabelPCAFolder(code=code, manifest=manifest, digest=manifests.digest(manifest), uri=uri)


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
    return LabelPCAFolder(
        code=_from_arrays(arrays, manifest), manifest=manifest, digest=manifests.digest(manifest), uri=uri
    )


def _arrays(code: LabelCode) -> dict[str, NDArray[np.float64]]:
    """What is stored of a code. No metadata: safetensors writes it in an order that changes from run to run."""
    if isinstance(code, LabelPCA):
        arrays = {"basis_DP": code.basis_DP, "eigenvalues_P": code.eigenvalues_P, "mean_D": code.mean_D}
    else:
        arrays = {"mean_code_P": code.mean_code_P, "mean_square_P": code.mean_square_P}
        for side, layers in (("encoder", code.encoder), ("decoder", code.decoder)):
            for index, layer in enumerate(layers):
                arrays |= {f"{side}_{index}_weight_OI": layer.weight_OI, f"{side}_{index}_bias_O": layer.bias_O}
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def _from_arrays(arrays: dict[str, NDArray[np.float64]], manifest: dict[str, Any]) -> LabelCode:
    """Inverse of `_arrays`."""
    if manifest["solver"] == PCA:
        return LabelPCA(
            basis_DP=arrays["basis_DP"],
            eigenvalues_P=arrays["eigenvalues_P"],
            mean_D=arrays["mean_D"],
            centred=manifest["centred"],
            block_side=manifest["block_side"],
            num_classes=manifest["num_classes"],
            total_energy=manifest["total_energy"],
            num_blocks=manifest["num_blocks"],
        )

    def layers(side: str) -> tuple[Dense, ...]:
        count = sum(name.startswith(f"{side}_") and name.endswith("_bias_O") for name in arrays)
        return tuple(
            Dense(arrays[f"{side}_{index}_weight_OI"], arrays[f"{side}_{index}_bias_O"]) for index in range(count)
        )

    return LearnedCode(
        solver=manifest["solver"],
        encoder=layers("encoder"),
        decoder=layers("decoder"),
        mean_code_P=arrays["mean_code_P"],
        mean_square_P=arrays["mean_square_P"],
        captured_energy=manifest["captured_energy"],
        block_side=manifest["block_side"],
        num_classes=manifest["num_classes"],
        num_blocks=manifest["num_blocks"],
    )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
