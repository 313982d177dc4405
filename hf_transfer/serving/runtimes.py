"""The runtimes that a model can be written for, and what to use for others; imports no torch."""

from __future__ import annotations

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml", "executorch": ".pte"}
OTHERS = {
    "coreml": "its files run on a Mac only, so they could not be compared with predict here; write "
    "--to onnx, which ONNX Runtime runs on Apple devices by its CoreML provider",
}


def refusal(to: str) -> str:
    """Return why nothing is written for a runtime that is not in SUFFIXES, and what to do."""
    if instead := OTHERS.get(to.lower()):
        return f"export to {to} is not supported; {instead}"
    return f"cannot export to {to!r}; choose one of {', '.join(SUFFIXES)}"
