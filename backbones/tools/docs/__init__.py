"""What is written of the docs by `python -m backbones.tools.docs`."""
