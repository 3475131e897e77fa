"""Slices of a split's shards, and the Ray tasks that read them: verified rows, still encoded.

The processes that read import this module and nothing heavier: PyTorch and the networks would cost each of them four
seconds and 300 MB.
"""

import pyarrow as pa

from pipelines.shards import PreparedDataset, read_part

PLACE = [pa.field("part", pa.int32()), pa.field("row", pa.int32())]
ENCODED_SCHEMA = pa.schema(
    [
        *PLACE,
        pa.field("image_id", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("label", pa.binary()),
        pa.field("error", pa.string()),
    ]
)
"""What a scorer is given: rows of a shard with their place; where `error` is not null, it is all there is."""

MAX_SLICE_ROWS = 64
SLICES_PER_WORKER = 4


def cut_slices(part_rows: list[int], *, workers: int, batch_size: int) -> list[dict[str, int]]:
    """Rows `start..stop` of each part: few enough that every worker gets several slices, so that none waits at the end.

    Slices begin at multiples of `batch_size` within their part: the images of one forward pass, whose sums may round
    differently in other company, are then the same for any number of workers.
    """
    wanted = -(-sum(part_rows) // (SLICES_PER_WORKER * workers))
    rows = -(-min(max(wanted, 1), MAX_SLICE_ROWS) // batch_size) * batch_size
    return [
        {"part": part, "start": start, "stop": min(start + rows, num_rows)}
        for part, num_rows in enumerate(part_rows)
        for start in range(0, num_rows, rows)
    ]


def read_rows(dataset: PreparedDataset, split: str, *, part: int, start: int, stop: int) -> pa.Table:
    """Encoded rows of one verified shard, with their place."""
    table = read_part(dataset, dataset.splits[split].parts[part], columns=("image_id", "image", "label"))
    rows = table.slice(start, stop - start)
    rows = rows.add_column(0, "row", pa.array(range(start, start + rows.num_rows), pa.int32()))
    return rows.add_column(0, "part", pa.array([part] * rows.num_rows, pa.int32()))


def read_slice(work: pa.Table, *, dataset: PreparedDataset, split: str) -> pa.Table:
    """What is wrong with a shard travels in `error`: an exception would reach the driver without its type."""
    item = work.to_pylist()[0]
    try:
        rows = read_rows(dataset, split, part=item["part"], start=item["start"], stop=item["stop"])
    except ValueError as error:
        return pa.Table.from_pylist([{"error": str(error)}], schema=ENCODED_SCHEMA)
    return rows.append_column("error", pa.nulls(rows.num_rows, pa.string())).cast(ENCODED_SCHEMA)
