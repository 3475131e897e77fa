"""Shards as a plan has them."""

import pyarrow as pa

from pipelines.tables.runs import PLAN


def planned_shard(uris: list[str], sizes: list[int]) -> pa.Table:
    """The work list of one shard of files: the plan's first, and only one."""
    rows = [
        {"work_id": f"w{index}", "uri": uri, "etag": "e", "size_bytes": size, "reason": "new", "shard": 0}
        for index, (uri, size) in enumerate(zip(uris, sizes, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)
