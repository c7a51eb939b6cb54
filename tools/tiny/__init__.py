"""Training of the embedded checkpoint. `python -m tools.tiny --help` says how to run it.

world.py            the scenes: moving sprites, rendered from a formula
architecture.py     the untrained parts, and the files of a checkpoint
initialization.py   the weights that training starts from
train_vae.py        the autoencoder's loss and recipe
latents.py          the U-Net's data: scenes encoded once
train_unet.py       the U-Net's loss and recipe
training.py         the training loop
"""
