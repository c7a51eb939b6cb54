"""Drawing of the bundled demo: `python -m tools.demo.build FOLDER`."""
