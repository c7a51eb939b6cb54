#!/bin/sh
# From a folder of photos to a labelled dataset and a report of it. Run it in an empty folder:
#     sh chain.sh
# It needs: pip install 'sgi2v-batch[export,report]' scikit-image datasets webdataset duckdb polars
# and makes its videos with the small checkpoint of the package. Started again, it goes on where it was stopped.
set -eu
here=$(dirname "$0")       # photos.py and load.py lie beside this script
samples=${SAMPLES:-24}

# Photos. Use a folder of your own instead.
python "$here/photos.py"

# What is asked for: boxes in the photos and paths for them, one row a video. 128 x 128 px and 8 frames are what the
# checkpoint of the package makes; leave these three options out for Stable Video Diffusion.
sgi2v-batch manifest make photos -o moves.parquet --samples "$samples" --height 128 --width 128 --frames 8

# The videos, and for each one a video of the same noise without guidance.
sgi2v-batch run moves.parquet --model embedded --preset fast --baseline unguided --output moves

# Measure the videos by other protocols too.
sgi2v-batch evaluate moves -o evaluation --protocol objmc/v2 --protocol mc-bench/md-vid --protocol track-box-iou

# Keep the two videos of each photo that follow their paths best, unless the object is lost in most frames.
# `select moves` would do too, and has the columns that compare with the baseline.
sgi2v-batch select evaluation --where "failure < 0.5" --top 2 --per image --by control_gain -o kept.parquet

# The same samples in every format.
for format in videofolder webdataset lance npz coco-video; do
    sgi2v-batch export kept.parquet --format "$format" -o "export/$format" --splits train=0.5,test=0.5
done

# Load each with its own library.
python "$here/load.py" export

# Pages to look at: open moves-report/index.html and evaluation-report/index.html.
sgi2v-batch report moves -o moves-report
sgi2v-batch report evaluation -o evaluation-report
