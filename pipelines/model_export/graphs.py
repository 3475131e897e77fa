"""A network as a graph file, `.pt2` or `.onnx`, that gives what the network gives: checked before anybody gets it."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import storage
from pipelines.checkpoints import ModelBundle
from segcore.exportable import ExportableModel, export_program
from segcore.networks import network_to_dict

CHECKED_SIZES = ((1, 64, 96), (2, 97, 131), (1, 33, 200), (3, 128, 65))
"""Images, rows and columns at which file and network are compared: multiples of the strides and not, even and odd."""

TOLERANCE = 1e-4
"""Largest difference of a logit, in units of the largest logit of that image where that is above 1: a data-dependent
decoder divides by its temperature, and gives logits of some hundreds."""

INPUT_NAME, OUTPUT_NAME = "images", "logits"
OPSET = 20
MAX_ONNX_BYTES = 2**31 - 2**20
"""An ONNX file is one protocol buffer, which ends at 2 GiB."""
METADATA_FILE = "metadata.json"
"""Within a .pt2: what an .onnx has among its own properties."""

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far file and network were apart at one size.

    Attributes:
        size: images, rows, columns.
        difference: largest, of any logit.
        largest_logit: of the network, in absolute value.
    """

    size: tuple[int, int, int]
    difference: float
    largest_logit: float

    @property
    def is_close(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.largest_logit)


def graph_bytes(bundle: ModelBundle, *, file_format: str, metadata: dict[str, Any]) -> tuple[bytes, list[Parity]]:
    """The file, and how far it is from the network at each of `CHECKED_SIZES`.

    Args:
        bundle: the loaded model.
        file_format: pt2 or onnx.
        metadata: JSON values that the file carries along.

    Raises:
        ValueError: the network cannot be written so, or what was written gives other scores; the message names it.
    """
    network = f"network {network_to_dict(bundle.card.model_config)['network']!r} on {bundle.card.model_config.backbone}"
    model = ExportableModel(bundle.model, mean=bundle.card.mean, std=bundle.card.std)
    try:
        program = export_program(model)
        data = _WRITERS[file_format](program, metadata)
    except Exception as error:  # PyTorch and its ONNX exporter raise anything
        raise ValueError(
            f"{network} cannot be exported to {file_format}: {_root(error)}; choose another format, or --format hf, "
            "which takes every network (docs/export.md has a table)"
        ) from error
    parities = compare(bundle, _RUNNERS[file_format](data))
    for parity in parities:
        if not parity.is_close:
            raise ValueError(
                f"{network} gives other scores as {file_format}: at size {parity.size} they differ by "
                f"{parity.difference:.2g}, expected at most {TOLERANCE} (of logits up to {parity.largest_logit:.2g}); "
                "nothing was exported: choose another format"
            )
    return data, parities


def _root(error: BaseException) -> str:
    """What went wrong first, in one line: PyTorch's exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def compare(bundle: ModelBundle, run: Run) -> list[Parity]:
    """Scores of noise by a file, and by the network itself of the same images, normalised as the model card says."""
    generator = torch.Generator().manual_seed(0)
    mean_311, std_311 = (torch.tensor(values).view(3, 1, 1) for values in (bundle.card.mean, bundle.card.std))
    found = []
    for size in CHECKED_SIZES:
        images_N3HW = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            expected = bundle.model((images_N3HW / 255 - mean_311) / std_311).logits_NCHW
        difference = np.abs(run(images_N3HW.numpy()) - expected.numpy())
        found.append(Parity(size=size, difference=float(difference.max()), largest_logit=float(expected.abs().max())))
    return found


def run_pt2(data: bytes) -> Run:
    """A `.pt2` that this process has written. PyTorch unpickles parts of such files: never one of unknown origin."""
    module = torch.export.load(io.BytesIO(data)).module()

    def run(images_N3HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits_NCHW: Tensor = module(torch.from_numpy(images_N3HW))
        array: NDArray[np.float32] = logits_NCHW.numpy()
        return array

    return run


def run_onnx(data: bytes) -> Run:
    """An `.onnx` in ONNX Runtime, on the CPU."""
    import onnxruntime  # of the extra `export`: nothing else needs it

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images_N3HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        array: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images_N3HW})[0]
        return array

    return run


def _pt2(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: storage.json_bytes(metadata).decode()})
    return file.getvalue()


def _onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    if num_bytes > MAX_ONNX_BYTES:
        raise ValueError(f"its weights take {num_bytes} bytes, and one ONNX file holds at most {MAX_ONNX_BYTES}")
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
    )
    assert exported is not None
    for name, value in metadata.items():
        exported.model.metadata_props[name] = value if isinstance(value, str) else storage.json_bytes(value).decode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        exported.save(path, external_data=False)
        return path.read_bytes()


_WRITERS: dict[str, Callable[[torch.export.ExportedProgram, dict[str, Any]], bytes]] = {"pt2": _pt2, "onnx": _onnx}
_RUNNERS: dict[str, Callable[[bytes], Run]] = {"pt2": run_pt2, "onnx": run_onnx}
