"""The Arrow schemas of a store's tables, and how tables that belong to a grid or an encoder are named."""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 1

TIME = pa.timestamp("us", tz="UTC")

META = pa.schema(
    [
        pa.field("format_version", pa.int32()),
        pa.field("created_by", pa.string()),
        pa.field("created_at", TIME),
    ]
)

SLIDES = pa.schema(
    [
        pa.field("slide_id", pa.string()),
        pa.field("slide_no", pa.int32()),
        pa.field("path", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("vendor", pa.string()),
        pa.field("width0", pa.int32()),
        pa.field("height0", pa.int32()),
        pa.field("mpp", pa.float64()),
        pa.field("mpp_source", pa.string()),
        pa.field("manifest_mpp", pa.float64()),
        pa.field("objective", pa.float64()),
        pa.field("mask", pa.string()),
        pa.field("thumbnail", pa.binary()),
        pa.field("cohort", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("site_id", pa.string()),
        pa.field("registered_at", TIME),
    ]
)

GRIDS = pa.schema(
    [
        pa.field("grid_id", pa.string()),
        pa.field("mpp", pa.float64()),
        pa.field("tile_px", pa.int32()),
        pa.field("stride_px", pa.int32()),
        pa.field("settings", pa.string()),
        pa.field("resampler", pa.string()),
        pa.field("settings_hash", pa.string()),
        pa.field("created_at", TIME),
    ]
)

ENCODERS = pa.schema(
    [
        pa.field("encoder_id", pa.string()),
        pa.field("name", pa.string()),
        pa.field("method", pa.string()),
        pa.field("dim", pa.int32()),
        pa.field("spec", pa.string()),
        pa.field("created_at", TIME),
    ]
)

ENCODER_FILES = pa.schema(
    [
        pa.field("encoder_id", pa.string()),
        pa.field("file", pa.string()),
        pa.field("content", pa.large_binary()),
    ]
)

TILES = pa.schema(
    [
        pa.field("tile_id", pa.int64()),
        pa.field("slide_no", pa.int32()),
        pa.field("x0", pa.int32()),
        pa.field("y0", pa.int32()),
        pa.field("extent_px0", pa.int32()),
        pa.field("tissue", pa.float32()),
        pa.field("thumb", pa.binary()),
        pa.field("image", pa.binary()),
    ]
)

DONE = pa.schema(
    [
        pa.field("table_name", pa.string()),
        pa.field("slide_no", pa.int32()),
        pa.field("slide_id", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("settings_hash", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("tiles", pa.int64()),
        pa.field("bad_tiles", pa.int32()),
        pa.field("images", pa.bool_()),
        pa.field("mpp", pa.float64()),
        pa.field("mpp_source", pa.string()),
        pa.field("true_mpp", pa.float64()),
        pa.field("upsampling", pa.float64()),
        pa.field("reasons", pa.string()),
        pa.field("reader", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("at", TIME),
    ]
)

ANNOTATIONS = pa.schema(
    [
        pa.field("slide_no", pa.int32()),
        pa.field("tile_id", pa.int64()),
        pa.field("grid_id", pa.string()),
        pa.field("name", pa.string()),
        pa.field("version", pa.string()),
        pa.field("value", pa.string()),
        pa.field("number", pa.float64()),
        pa.field("author", pa.string()),
        pa.field("at", TIME),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("failure_id", pa.string()),
        pa.field("slide_id", pa.string()),
        pa.field("path", pa.string()),
        pa.field("grid_id", pa.string()),
        pa.field("encoder_id", pa.string()),
        pa.field("tile_key", pa.string()),
        pa.field("phase", pa.string()),
        pa.field("exception", pa.string()),
        pa.field("message", pa.string()),
        pa.field("tries", pa.int32()),
        pa.field("fingerprint", pa.string()),
        pa.field("settings_hash", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("at", TIME),
        pa.field("resolved_by", pa.string()),
    ]
)

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("command", pa.string()),
        pa.field("config", pa.string()),
        pa.field("versions", pa.string()),
        pa.field("device", pa.string()),
        pa.field("host", pa.string()),
        pa.field("machine", pa.string()),
        pa.field("pid", pa.int64()),
        pa.field("pid_started", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("started_at", TIME),
        pa.field("heartbeat_at", TIME),
        pa.field("finished_at", TIME),
        pa.field("status", pa.string()),
        pa.field("counts", pa.string()),
        pa.field("stages", pa.string()),
    ]
)

INDEXES = pa.schema(
    [
        pa.field("table_name", pa.string()),
        pa.field("table_version", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("settings", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("card", pa.string()),
        pa.field("distribution", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("at", TIME),
    ]
)

# A map is one row without a slide, which holds the model, and one row for each slide, in its own order of tiles.
PROJECTIONS = pa.schema(
    [
        pa.field("row_id", pa.string()),
        pa.field("map_id", pa.string()),
        pa.field("table_name", pa.string()),
        pa.field("method", pa.string()),
        pa.field("slide_no", pa.int32()),
        pa.field("mark", pa.string()),
        pa.field("fitted", pa.bool_()),
        pa.field("tile_id", pa.list_(pa.int64())),
        pa.field("x", pa.list_(pa.float32())),
        pa.field("y", pa.list_(pa.float32())),
        pa.field("settings", pa.string()),
        pa.field("model", pa.large_binary()),
        pa.field("at", TIME),
    ]
)

FIXED_TABLES: dict[str, pa.Schema] = {
    "meta": META,
    "slides": SLIDES,
    "grids": GRIDS,
    "encoders": ENCODERS,
    "encoder_files": ENCODER_FILES,
    "done": DONE,
    "annotations": ANNOTATIONS,
    "quarantine": QUARANTINE,
    "runs": RUNS,
    "indexes": INDEXES,
    "projections": PROJECTIONS,
}

# Names that a manifest column may not bear: the store's own, and what is derived from them.
RESERVED_SLIDE_COLUMNS = frozenset([*SLIDES.names, "status", "reasons"])

TILE_IMAGE_QUALITY = 90
THUMB_PX = 128
OVERVIEW_PX = 1024


def vectors_schema(dim: int, ratio: float) -> pa.Schema:
    """Schema of a vectors table.

    Args:
        dim: length of a vector.
        ratio: extent of the grid's tiles over the extent that the encoder was made for; kept as metadata.
    """
    return pa.schema(
        [
            pa.field("tile_id", pa.int64()),
            pa.field("slide_no", pa.int32()),
            pa.field("x0", pa.int32()),
            pa.field("y0", pa.int32()),
            pa.field("tissue", pa.float32()),
            pa.field("norm", pa.float32()),
            pa.field("vector", pa.list_(pa.float32(), dim)),
        ],
        metadata={"resize_ratio": repr(ratio)},
    )


def tiles_table_name(grid_id: str) -> str:
    """Name of the tiles table of a grid."""
    return f"tiles_{grid_id}"


def vectors_table_name(encoder_id: str, grid_id: str) -> str:
    """Name of the table that holds one encoder's vectors on one grid."""
    return f"vectors_{encoder_id}_{grid_id}"


def split_vectors_name(table_name: str) -> tuple[str, str] | None:
    """Encoder id and grid id of a vectors table; None for any other table."""
    parts = table_name.split("_")  # ids are slugs, without an underscore
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == "vectors" else None
