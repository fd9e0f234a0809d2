"""Write images into the file formats of machine learning data sets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # it has no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types


def make_table(images: Sequence[bytes | None], names: Sequence[str] = (), **columns: Sequence[Any]) -> Any:
    """Return a table as Hugging Face's `datasets` writes it; `names` are the classes of the column ``label``."""
    rows = [{"bytes": content, "path": None} for content in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), **columns})
    if not names:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_table(path: Path, table: Any, rows_per_group: int = 4, compression: str | None = None) -> Path:
    """Write a table in the format of the suffix: Parquet, an Arrow file (``.feather``) or an Arrow stream.

    `compression` applies to the last two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_per_group)
        return path
    opener = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with opener(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=rows_per_group)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write files into a tar archive, in order; `mode` as in `tarfile.open`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # the mode is not a literal
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
