"""Sources: each module makes a manifest of data in one layout. `sgi2v.py` is the model to follow.

To add a source called NAME:

1. `manifests/sources/NAME.py`: a function `from_NAME(folder: str, relative_to: str) -> pa.Table`. It returns one row
   per sample through `manifests.schema.conform`. Image paths are relative to `relative_to`, the folder that the
   manifest is written in. It raises one ManifestError that lists every bad item, and needs neither torch nor Ray.
2. `pipeline/cli/manifest.py`: a command `sgi2v-batch manifest from-NAME FOLDER -o MANIFEST`, like `from_sgi2v` there.
   It calls the function and `write_manifest`.
3. `tests/manifests/test_sources_NAME.py`: good folders become rows that `manifests.validate.validate` accepts, and
   every bad folder is named. `tests/pipeline/cli/test_manifest.py`: the command. The README names it too.
"""
