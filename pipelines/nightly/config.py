"""What `segment` is asked for."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from pipelines import storage
from pipelines.nightly import webhook
from pipelines.nightly.listing import check_source
from pipelines.tables.schemas import STAGES
from segcore import run_lengths
from segcore.inference import InferenceConfig
from segcore.tile_grid import TilingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig:
    """Images, a model, and the tables that grow."""

    model: str
    """Model folder (path or URI), models:/name@alias or models:/name/3."""
    tables: str
    """Folder or URI of the tables; new, or with results of a model with the same classes."""
    images: str = ""
    """Folder or bucket of images (path or s3:// URI), searched at any depth; or one image. Beside --manifest: only what
    lies below counts."""
    manifest: str = ""
    """In place of a listing: a .parquet or .csv file with a column `uri` and, where known, `etag`, `size_bytes` and
    `last_modified`; or the manifest.json of an S3 Inventory."""
    plan: bool = False
    """Only say what there is to do, and by earlier runs how long it will take; nothing is run or written."""
    cost_per_hour: float = 0.0
    """Price of the whole cluster, in any currency; then --plan says what a run will cost, and the page what it did."""
    force: bool = False
    """Segment again what the tables hold already. The older rows stay; of each image the newest run's counts."""
    retry: tuple[str, ...] = ()
    """Stages (see the failures table) whose failed images are tried again, though their files have not changed.
    Failures that may pass by themselves are tried again anyway."""
    accept_deletions: bool = False
    """Mark objects as deleted even where more than half of those below --images are listed no more, which is else taken
    for an outage of the listing."""
    ensemble: tuple[str, ...] = ()
    """More models, given as --model is, with the same classes: all their class probabilities are averaged with the
    first one's."""
    challenger: str = ""
    """A second model, given as --model is, with the same classes: it sees a sample of the images too, and is compared
    (table `comparisons`, the page, MLflow). Nothing else changes."""
    challenger_fraction: float = 0.02
    """Share of the images that the challenger sees."""
    challenger_seed: int = 0
    """Another seed samples other images."""
    leave_out: tuple[str, ...] = ()
    """Classes of the models that are not asked for, such as the background that `prepare object_crops` adds to a
    dataset without one: the probabilities of the others then add up to 1."""
    workers: int = 1
    """Actors, each with the model."""
    threads: int = 2
    """CPU threads of each actor's network; each is one logical CPU of Ray. Threads share the model and the caches:
    one actor of two threads is faster than two actors of one."""
    decode_threads: int = 2
    """Threads of each actor that decode images beside the network."""
    image_seconds: float = 60.0
    """Seconds that decoding one image may take before it ends in the failures table; of one in tiles, each of them. An
    image too large to be shown whole that is decoded at once (JPEG, PNG) has as many times longer as it is larger.
    Files above 64 MiB are read in this time too."""
    batch_size: int = 0
    """Images of one size per network call; 0 = 1 on a CPU, where more only leave its cache, and 8 on a GPU."""
    images_per_shard: int = 64
    """Images per commit at most: what a dead worker loses, and what one part file holds."""
    use_gpu: bool = False
    """One GPU per actor."""
    gpu_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the networks with --use-gpu, in place of --inference.precision; part of a mask's identity."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How each network is shown an image."""
    tiling: TilingConfig = field(default_factory=TilingConfig)
    """Which images are too large to be shown whole, and the tiles that they are shown in."""
    max_pixels: int = 2**29
    """Images of more pixels than this are refused: 537 million."""
    recipe_inference: bool = False
    """Show images as each model's recipe says (the paper's scales, mirror images, windows, proposals), in place of
    --inference."""
    abandon_unfinished: bool = False
    """Give up what an earlier, unfinished run has not committed, instead of finishing it with its own model first.
    Its images are planned anew."""
    max_failure_rate: float = 0.05
    """Stop with exit code 3 when more than this share of a run's images, and more than 20, have failed in this job:
    that is an outage, not bad images. The same command continues the run, and counts anew."""
    webhook: str = ""
    """http(s) address that gets one JSON message when the job has ended: status, counts, page, error."""
    page: bool = True
    """Write a page with statistics, sample overlays and drift beside the run's plan."""
    prefix_depth: int = 1
    """Folders below --images that tell the cameras apart, each of which has its own drift; 0: one for all."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "decode_threads", "images_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 or more")
        if self.batch_size < 0:
            raise ValueError(f"--batch-size is {self.batch_size}; give 1 or more, or 0 to have it chosen")
        if not 1 <= self.max_pixels <= run_lengths.MAX_PIXELS:
            raise ValueError(f"--max-pixels is {self.max_pixels}; give 1 to {run_lengths.MAX_PIXELS}, a mask's limit")
        if not self.images and not self.manifest:
            raise ValueError("neither --images nor --manifest is given; say what is to be segmented")
        unknown = [stage for stage in self.retry if stage not in STAGES]
        if unknown:
            raise ValueError(f"--retry {unknown[0]!r} is no stage; expected some of {', '.join(STAGES)}")
        if not self.image_seconds > 0:
            raise ValueError(f"--image-seconds is {self.image_seconds}; give more than 0")
        if self.prefix_depth < 0 or self.cost_per_hour < 0:
            raise ValueError(
                f"--prefix-depth is {self.prefix_depth} and --cost-per-hour {self.cost_per_hour}; give 0 or more"
            )
        if not 0 < self.challenger_fraction <= 1:
            raise ValueError(f"--challenger-fraction is {self.challenger_fraction}; give a share above 0, up to 1")
        if not 0 <= self.max_failure_rate <= 1:
            raise ValueError(f"--max-failure-rate is {self.max_failure_rate}; give a share of images, 0 to 1")
        if self.webhook:
            webhook.check_url(self.webhook)

    @property
    def source(self) -> str:
        """What is listed, or stands for a listing."""
        return self.manifest or self.images


def checked_places(config: SegmentConfig) -> SegmentConfig:
    """The same with absolute paths, since workers run in other folders.

    Raises:
        ValueError: there is nothing to list, or the tables lie inside the images.
    """
    config = dataclasses.replace(
        config,
        images=config.images and storage.absolute(config.images),
        manifest=config.manifest and storage.absolute(config.manifest),
        tables=storage.absolute(config.tables),
    )
    if config.images and f"{config.tables}/".startswith(f"{config.images.rstrip('/')}/"):
        raise ValueError(
            f"the tables {config.tables!r} lie inside the images {config.images!r}, which would list them as images; "
            "give --tables another place"
        )
    check_source(config.images, config.manifest)
    return config
