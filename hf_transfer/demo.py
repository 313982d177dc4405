"""Where the demo was in 0.1.0: Spaces that were published then import it from here."""

from hf_transfer.serving.demo import build_demo, launch

__all__ = ["build_demo", "launch"]
