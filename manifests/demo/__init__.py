"""The bundled demo: five scenes drawn by the program itself, and a manifest that sets them in motion."""
