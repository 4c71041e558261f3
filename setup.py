"""Packaging. The version stands in ``samunet/__init__.py`` and nowhere else."""

import ast
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "samunet" / "__init__.py").read_text())[1]

# The table of commands, read as text: the package's requirements are not there while it is built.
TABLE = ast.parse((ROOT / "samunet" / "commands" / "__init__.py").read_text())
FILES = next(
    ast.literal_eval(node.value)
    for node in TABLE.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "FILES"
)
SCRIPTS = [f"samunet_{name}=samunet.commands.{file}:{name}" for file, names in FILES.items() for name in names]

ONNX = ["onnx>=1.17", "onnxscript>=0.2", "onnxruntime>=1.20"]  # for samunet_export_onnx; tested up to 1.23, 0.7, 1.31

setup(
    name="samunet",
    version=VERSION,
    description="Self-configuring medical image segmentation with an adapted Segment Anything Model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["samunet", "samunet.*"]),
    # Named, so that an editable install is a folder on Python's path: then the package is found before a folder of its
    # name, such as a clone, in the folder that Python is started in.
    package_dir={"": "."},
    package_data={"samunet": ["weights/*", "report/templates/*"]},
    install_requires=[
        "torch>=2.6,<2.14",  # tested up to 2.13
        "segment-anything>=1.0",  # SAM's modules; torchvision is not needed
        "peft>=0.14",
        "safetensors>=0.4",
        "batchgenerators>=0.25",
        "acvl-utils>=0.2.3",
        "blosc2>=4.14.1",
        "SimpleITK>=2.3",
        "nibabel>=5.2",  # NIfTI headers, whose orientation SimpleITK does not restore bit for bit
        "numpy>=1.26",
        "filelock>=3.16",
        "psutil>=5.9",
        "scipy>=1.11",
        "pillow>=10.0",
        "pydicom>=3.0",  # headers of DICOM files; SimpleITK decodes their pixels
        "tifffile>=2023.7",
        "imagecodecs>=2024.1",  # compressions of TIFF
        "matplotlib>=3.8",
        "jinja2>=3.1",  # pages of reports
        "pydantic>=2.6",
        "typing-extensions>=4.8",
        "tqdm>=4.65",
    ],
    extras_require={
        "hdf5": ["h5py>=3.8"],  # SAMed's test volumes
        "onnx": ONNX,
        "test": ["pytest>=8.0", "pytest-xdist>=3.5", "scikit-learn>=1.3", "h5py>=3.8", *ONNX],
        "dev": ["ruff>=0.6", "pre-commit>=3.5"],
    },
    entry_points={"console_scripts": ["samunet=samunet.commands:main", *SCRIPTS]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
