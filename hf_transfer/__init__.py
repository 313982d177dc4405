"""Transfer learning for image models: plan it, run it, prove it, publish it."""

__version__ = "0.1.0"
