"""What the workers of `segment` are told, and what they tell; without Ray."""

import dataclasses
import json
from dataclasses import dataclass

from pipelines.ensembles import MemberModel
from pipelines.intake.headers import MAX_PIXELS
from pipelines.tables.runs import RunSettings, ShardCommit
from segcore.tile_grid import TilingConfig
from segcore.tiling import why_not_tiled


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerJob:
    """What every worker needs to know; small, since Ray copies it to each of them.

    Attributes:
        tables: URI of the tables' folder.
        settings: of the run.
        members: models that each worker loads, and whose class probabilities are averaged; one or more.
        batch_size: largest number of images per network call.
        threads: CPU threads of a worker's network.
        decode_threads: of a worker.
        image_seconds: time limit of decoding one image that is shown whole, or one tile.
        use_gpu: one GPU per worker.
        max_pixels: of an image.
    """

    tables: str
    settings: RunSettings
    members: tuple[MemberModel, ...]
    batch_size: int
    threads: int
    decode_threads: int
    image_seconds: float
    use_gpu: bool
    max_pixels: int = MAX_PIXELS

    @property
    def tiling(self) -> TilingConfig | None:
        """How large images are shown in tiles; None where the networks cannot be shown tiles."""
        if why_not_tiled([member.inference for member in self.members]):
            return None
        return TilingConfig(**self.settings.tiling)

    @property
    def whole_px(self) -> int:
        """Pixels of the largest image that is decoded to an array and shown as a whole."""
        largest = self.tiling.above_px if self.tiling else MAX_PIXELS
        return min(largest, MAX_PIXELS, self.max_pixels)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What one shard cost and gave.

    Attributes:
        result: its commit.
        began, ended: seconds since 1970 by the worker's clock.
        worker_began: when that worker had loaded its model.
        peak_memory_bytes: largest resident memory of the worker so far.
        worker_pid: of the worker's process.
        seconds: of that worker so far, by stage; they add up to the time since `worker_began`.
    """

    result: ShardCommit
    began: float
    ended: float
    worker_began: float
    peak_memory_bytes: int
    worker_pid: int
    seconds: dict[str, float]

    @property
    def num_images(self) -> int:
        """Segmented."""
        return self.result.num_rows("predictions")

    @property
    def num_failures(self) -> int:
        """In the failures table."""
        return self.result.num_rows("failures")

    def to_json(self) -> str:
        """`from_json` reverses it."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "ShardReport":
        """What `to_json` made text of."""
        values = json.loads(text)
        return ShardReport(**values | {"result": ShardCommit.from_dict(values["result"])})
