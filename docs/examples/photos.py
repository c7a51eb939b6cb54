"""Writes six photographs of scikit-image into the folder `photos`: stand-ins for your own."""

from pathlib import Path

from PIL import Image
from skimage import data

photos = {
    "astronaut": data.astronaut(),
    "cat": data.chelsea(),
    "cup": data.coffee(),
    "galaxies": data.hubble_deep_field(),
    "motorcycle": data.stereo_motorcycle()[0],
    "rocket": data.rocket(),
}
Path("photos").mkdir(exist_ok=True)
for name, picture in photos.items():
    Image.fromarray(picture).save(Path("photos") / f"{name}.jpg")
print(f"wrote {len(photos)} photos")
