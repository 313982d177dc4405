"""The Space: shows the model that the variable MODEL, or the first argument, names."""

import os
import sys
from pathlib import Path

from hf_transfer.base.errors import UserError
from hf_transfer.serving.demo import launch

if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MODEL")
    if not model:
        sys.exit("error: no model; set the variable MODEL to OWNER/NAME, or give a run folder")
    examples = Path(__file__).parent / "examples"
    try:
        launch(model, examples=examples if examples.is_dir() else None, announce=print)
    except UserError as error:
        sys.exit(f"error: {error}")
