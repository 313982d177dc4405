"""The Space: shows the models that the variable MODEL, or the arguments, name, and trains."""

import os
import sys
from pathlib import Path

from hf_transfer import UserError, demo

if __name__ == "__main__":
    models = sys.argv[1:] or os.environ.get("MODEL", "").split()
    backbones = os.environ.get("BACKBONES", "").split()
    folder = Path(__file__).parent / "examples"
    examples = sorted(folder.iterdir()) if folder.is_dir() else ()
    try:
        demo(*models, backbones=backbones, examples=examples, announce=print)
    except UserError as error:
        sys.exit(f"error: {error}")
