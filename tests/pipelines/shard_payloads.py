"""Shards as `fetch` gets them."""

import pyarrow as pa

from pipelines.nightly.fetch import to_stream
from pipelines.tables.runs import PLAN


def payload_of(uris: list[str], sizes: list[int]) -> pa.Table:
    """What a worker is sent of one shard of files."""
    rows = [
        {"work_id": f"w{index}", "uri": uri, "etag": "e", "size_bytes": size, "reason": "new", "shard": 0}
        for index, (uri, size) in enumerate(zip(uris, sizes, strict=True))
    ]
    items = pa.Table.from_pylist(rows, schema=PLAN)
    return pa.table({"shard": [0], "payload": pa.array([to_stream(items)], pa.large_binary())})
