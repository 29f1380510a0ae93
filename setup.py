"""Packaging of xrl. ``requirements.txt`` pins the versions that are tested; here stand the ranges that should work."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "xrl/__init__.py").read_text(encoding="utf-8"), re.M).group(1)
README = ROOT / "README.md"

PLAYER = ["aiohttp>=3.9"]
REPORT = ["matplotlib>=3.8", "scipy>=1.11"]
# Families of environments: each is loaded only when it is asked for (xrl/environment/registry.py).
BOX2D = ["gymnasium[box2d]>=1.1,<2"]
DMC = ["dm_control>=1.0.28", "mujoco>=3.3,<4"]  # the present dm_control looks for what MuJoCo 4 has not any more
MINIGRID = ["minigrid>=3.0"]

setup(
    name="xrl",
    version=VERSION,
    description="Deep reinforcement learning on PyTorch; DreamerV2 first",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="xrl developers",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["xrl", "xrl.*"]),
    package_data={"xrl.configs": ["**/*.yaml"], "xrl.player": ["*.html"], "xrl.report": ["*.json"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "gymnasium[classic-control]>=1.1,<2",
        "ale-py>=0.12.1",
        "opencv-python-headless>=4.9",
        "pillow>=10.1",
        "pydantic>=2.7,<3",
        "pyyaml>=6.0.1",
        "safetensors>=0.4.3",
        "tensorboard>=2.16",
        "tqdm>=4.66",
        "wandb>=0.17",
    ],
    extras_require={
        "player": PLAYER,
        "report": REPORT,
        "box2d": BOX2D,
        "dmc": DMC,
        "minigrid": MINIGRID,
        "dev": [*PLAYER, *REPORT, *BOX2D, *DMC, *MINIGRID, "hypothesis>=6.100", "mypy>=1.10", "pytest>=8",
                "pytest-xdist>=3.5", "ruff>=0.5", "setuptools>=70.1", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["xrl = xrl.__main__:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
