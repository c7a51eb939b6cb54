"""Rows and stages in Ray Data: one row a block, and each stage with the resources of its pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, logging
import pyarrow as pa
from pipeline.flow.session import configure_ray_data, quiet_ray
quiet_ray()
import ray
from pipeline.flow import dataset
from pipeline.flow.dataset import one_row_blocks, stream, through
from pipeline.flow.pools import Pool

class Note:
    def __init__(self, column):
        self.column = column

    def __call__(self, table):
        note = {"rows": table.num_rows, "types": [str(kind) for kind in table.schema.types],
                "resources": ray.get_runtime_context().get_assigned_resources()}
        return table.append_column(self.column, pa.array([json.dumps(note)]))

ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False)
configure_ray_data()
done = []
for dataset.ROWS_AT_ONCE in (6, 5):
    rows = one_row_blocks(pa.table({"sample_id": [*"abcdef"], "seed": pa.array([None] * 6, pa.int64())}))
    rows = through(rows, Note, ("generate",), Pool(2, 2, num_cpus=0.5, num_gpus=0.25))
    rows = through(rows, Note, ("commit",), Pool(1, 1, num_cpus=0.25, num_gpus=0.5))
    done.append(list(stream(rows)))
print(json.dumps(done))
"""


@pytest.mark.whole
@pytest.mark.timeout(300)
def test_the_dataflow_works_on_the_installed_ray() -> None:
    # the tests hide GPUs, but Ray refuses to start with a pretended GPU that is hidden
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=Path(__file__).parents[3],
    )
    assert process.returncode == 0, process.stderr
    split_here, split_by_ray = json.loads(process.stdout.splitlines()[-1])
    for rows in (split_here, split_by_ray):
        assert sorted(row["sample_id"] for row in rows) == [*"abcdef"]
    for row in (*split_here, *split_by_ray):
        generate, commit = json.loads(row["generate"]), json.loads(row["commit"])
        assert (generate["rows"], commit["rows"]) == (1, 1)
        assert generate["types"] == ["string", "int64"], "a column of nulls keeps its type"
        assert generate["resources"] == {"CPU": 0.5, "GPU": 0.25}
        assert commit["resources"] == {"CPU": 0.25, "GPU": 0.5}
