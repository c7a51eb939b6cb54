"""Loads each export of chain.sh with its own library, and prints what it has read: `python load.py export`."""

import json
import sys
from pathlib import Path

import numpy as np

EXPORTS = Path(sys.argv[1])


def with_datasets() -> str:
    from datasets import Video, load_dataset

    splits = load_dataset(str(EXPORTS / "videofolder"))
    splits = splits.cast_column("video", Video(decode=False))  # paths; frames need torchcodec
    row = next(iter(splits.values()))[0]
    return f"{splits.num_rows}; {row['sample_id']} is {row['video']['path']}"


def with_webdataset() -> str:
    import webdataset

    shards = [shard["key"] for shard in json.loads((EXPORTS / "webdataset/shards.json").read_text())["shards"]]
    samples = webdataset.WebDataset([str(EXPORTS / "webdataset" / key) for key in shards], shardshuffle=False)
    boxes = [json.loads(sample["labels.json"]) for sample in samples]
    return f"{len(boxes)} samples with {sum(map(len, boxes))} boxes"


def with_lance() -> str:
    import lance

    rows = [lance.dataset(str(folder)).count_rows() for folder in sorted((EXPORTS / "lance").glob("*.lance"))]
    return f"{rows} rows"


def with_pandas() -> str:
    import pandas as pd

    tables = sorted((EXPORTS / "videofolder").glob("*/*/metadata.parquet"))
    videos = pd.concat(map(pd.read_parquet, tables))
    return f"mean control gain {videos['control_gain'].mean():.2f} of {len(videos)} videos"


def with_duckdb() -> str:
    import duckdb

    labels = EXPORTS / "videofolder/*/*/labels.parquet"
    query = f"select count(*), sum(len(measured_centres)), avg(tracker_error_px) from '{labels}'"
    boxes, frames, error_px = duckdb.sql(query).fetchall()[0]
    return f"{boxes} boxes in {frames} frames, which the tracker follows to {error_px:.2f} px"


def with_polars() -> str:
    import polars as pl

    labels = pl.read_parquet(str(EXPORTS / "videofolder/*/*/labels.parquet"))
    frames = labels.select("sample_id", "visible_fraction").explode("visible_fraction")
    return f"{frames['visible_fraction'].mean():.0%} of the tracked points are visible"


def with_numpy() -> str:
    files = sorted((EXPORTS / "npz").rglob("*.npz"))
    tracks = [np.load(file)["points"] for file in files]
    return f"{sum(map(len, tracks))} point tracks of {tracks[0].shape[1]} frames in {len(files)} files"


def with_json() -> str:
    files = sorted((EXPORTS / "coco-video/annotations").glob("*.json"))
    objects = [each for file in files for each in json.loads(file.read_text())["annotations"]]
    return f"{len(objects)} objects in {[file.name for file in files]}"


LOADERS = with_datasets, with_webdataset, with_lance, with_pandas, with_duckdb, with_polars, with_numpy, with_json
for load in LOADERS:
    print(f"{load.__name__.removeprefix('with_'):10}  {load()}")
