"""The generated parts of the docs: `python -m backbones.tools.docs`."""
