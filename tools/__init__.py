"""Scripts that make the data in the package. They run from a checkout and are not in the wheel.

python -m tools.tiny --help            train the embedded checkpoint, sgi2v/tiny/checkpoint
python -m tools.demo.build FOLDER      draw the demo's pictures and write its manifest, manifests/demo
"""
