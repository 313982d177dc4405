"""What all tests share: two threads at most, and the real data where it is there."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
SCRATCH = tempfile.mkdtemp(prefix="hf-transfer-tests-")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
os.environ["HF_TRANSFER_CACHE"] = f"{SCRATCH}/cache"
os.environ["HF_MODULES_CACHE"] = f"{SCRATCH}/modules"  # code that evaluate and others copy
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def flowers() -> Path:
    """The folder of 4,317 flower photos in 5 classes."""
    folder = SHARED / "data" / "flowers"
    if not folder.is_dir():
        pytest.skip(f"real images are not there: {folder.name}")
    return folder


@pytest.fixture(scope="session")
def resnet10t() -> Path:
    """The timm folder with a ResNet-10-T pretrained on 200 classes at 64 px."""
    folder = SHARED / "weights" / "resnet10t_tiny_imagenet"
    if not folder.is_dir():
        pytest.skip(f"pretrained weights are not there: {folder.name}")
    return folder
