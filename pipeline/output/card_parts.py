"""Parts of the dataset card that say more of licences, limits and citation. See docs/output-format.md, Dataset card."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from pipeline.output.card_picture import PICTURE
from pipeline.output.run_file import RunFile
from pipeline.output.storage import Storage
from pipeline.output.tables import METADATA
from sgi2v.fetch import EMBEDDED
from sgi2v.tracking import TRACKERS
from sgi2v.wording import counted

LICENCE_COLUMNS = ("licence", "license")
"""Columns of a manifest that say the licence of its images."""
SHOWN_LICENCES = 20
"""Licences of images that the card names, the most frequent ones."""


def licences(storage: Storage, run: RunFile) -> str:
    """What is known of the licences of the model, of the tracker and of the images."""
    tracker = str(run.deciding["metrics"]["tracker"])
    tracker_licence = getattr(TRACKERS.get(tracker), "licence", None) or "as its makers state it"
    model = "Apache-2.0, as sgi2v-batch" if run.model.get("source") == EMBEDDED else "as its makers state it"
    lines = [
        "The front matter says `other`, because this program cannot tell which licences apply to the videos.",
        "State it there before you publish them.",
        "",
        "| of | licence |\n| --- | --- |",
        f"| the model | {model} |",
        f"| the tracker `{plain(tracker)}`, which made the measured labels | {plain(tracker_licence)} |",
        "| the texts and columns of the manifest | as its maker states it |",
    ]
    images = storage.read(METADATA, _image_licences)
    if not images:
        lines += ["| the images | not known: a manifest with a column `licence` is counted here |"]
        return "\n".join(lines)
    most = images.most_common(SHOWN_LICENCES)
    lines += [f"| {counted(number, 'image')} | {plain(name)} |" for name, number in most]
    if others := images.total() - sum(number for _, number in most):
        lines += [f"| {counted(others, 'image')} | others: column `licence` of `{METADATA}` |"]
    return "\n".join(lines)


def _image_licences(stream: BinaryIO) -> Counter[str] | None:
    """The number of images of made samples per value of the manifest's column `licence`; None without the column."""
    file = pq.ParquetFile(stream, pre_buffer=False)
    name = next((name for name in LICENCE_COLUMNS if name in file.schema_arrow.names), None)
    if name is None:
        return None
    columns = ["image_sha256", "sample_id", name]
    table = file.read(columns, use_threads=False)
    rows = zip(*(table[column].to_pylist() for column in columns), strict=True)
    of_images = {digest or sample_id: licence for digest, sample_id, licence in rows}
    return Counter(str(licence) if licence else "not stated" for licence in of_images.values())


def plain(text: Any) -> str:
    """Text of a user for one line of Markdown, inside backticks and in a table."""
    return re.sub(r"\s+", " ", str(text)).replace("`", "'").replace("|", "\\|").replace("<!--", "<! --")


DISTRIBUTIONS = f"""

![Histograms of control gain, distance from the asked path, asked distance, change and motion of the background, and
seconds of generation, over the made samples]({PICTURE})"""

NOTES = """## Limits

- The videos are synthetic and short, without sound, and show what one model makes of one image each. Who or what is in
  the images is in the videos.
- A model may move another object than the asked one, move the whole scene, or change how objects look: see some videos,
  beside the metrics, before you use them.
- Where an object was lost, or could not be followed, there is no measured label. Such objects are often small, smooth
  or fast, so that what is left is no fair sample of all."""

CITATION = """## How to cite

Cite the two methods, the makers of the images, and this dataset by its address and date:

```bibtex
@inproceedings{namekata2025sgi2v,
  title     = {{SG-I2V}: Self-Guided Trajectory Control in Image-to-Video Generation},
  author    = {Namekata, Koichi and Bahmani, Sherwin and Wu, Ziyi and Kant, Yash and Gilitschenski, Igor and
               Lindell, David B.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}

@article{blattmann2023stable,
  title   = {Stable Video Diffusion: Scaling Latent Video Diffusion Models to Large Datasets},
  author  = {Blattmann, Andreas and Dockhorn, Tim and Kulal, Sumith and Mendelevitch, Daniel and Kilian, Maciej and
             Lorenz, Dominik and Levi, Yam and English, Zion and Voleti, Vikram and Letts, Adam and Jampani, Varun and
             Rombach, Robin},
  journal = {arXiv preprint arXiv:2311.15127},
  year    = {2023}
}
```"""


def dataset_version(parts: Iterable[bytes]) -> str:
    """A version for a card's `configs` that is another one for another content.

    `datasets` keeps what it has loaded by the name of the folder and this version, and does not look at local files
    again. parts: whatever changes with the content.
    """
    digest = hashlib.sha256(b"".join(sorted(hashlib.sha256(part).digest() for part in parts))).digest()
    return f"0.{int.from_bytes(digest[:4])}.{int.from_bytes(digest[4:8])}"
