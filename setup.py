"""`pip install -e .` into an environment that has detectron2, or `make quickstart`, which builds one from requirements/."""

import os
import re

from setuptools import find_packages, setup

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "backbones", "__init__.py")) as f:
    version = re.search(r'^__version__ = "(.+)"', f.read(), re.M).group(1)
with open(os.path.join(here, "README.md")) as f:
    readme = f.read()

# the configs stand at the top level, for people; installed, they go inside the package
config_folders = [os.path.relpath(folder, os.path.join(here, "configs")) for folder, _, _ in os.walk(os.path.join(here, "configs"))]

setup(
    name="backbones",
    version=version,
    description="Efficient, detection-ready backbones for detectron2",
    long_description=readme,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["backbones", "backbones.*"]) + ["backbones.configs"],
    package_dir={"backbones.configs": "configs"},
    package_data={
        "backbones.zoo": ["*.json"],
        "backbones.configs": [os.path.normpath(os.path.join(folder, kind)) for folder in config_folders for kind in ("*.yaml", "*.py", "*.txt")],
    },
    # detectron2 is needed too, but is not on PyPI under its name: importing the package says how to get it
    install_requires=[
        "torch>=2.3",
        "torchvision>=0.18",
        "numpy>=1.26",
        "fvcore",
        "iopath",
        "matplotlib",
        "pycocotools",
        "pyyaml",
        "safetensors",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        # whoever has opencv-python need not install the headless build over it
        "digits": ["scikit-learn", "opencv-python-headless"],
        "panoptic": ["panopticapi-lite"],
        # LVIS's package is better installed with --no-deps, as it would put opencv-python over a headless build
        "cityscapes": ["cityscapesScripts", "shapely"],
        "export": ["onnx", "onnxruntime"],
        "openvino": ["onnx", "onnxruntime", "openvino"],
        "fast": ["faster-coco-eval", "simplejpeg"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny"],
        "test": [
            "faster-coco-eval",
            "hypothesis",
            "onnx",
            "onnxruntime",
            "openvino",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "scikit-learn",
            "opencv-python-headless",
            "panopticapi-lite",
            "cityscapesScripts",
            "shapely",
            "simplejpeg",
            "timm",
        ],
    },
)
