"""The program: `hf-transfer`, and `python -m hf_transfer`."""

import gc
import sys


def main() -> int:
    """Run the command line and return its exit status; Ctrl-C is a line, however early it comes."""
    gc.set_threshold(20_000)  # what is imported is no garbage: a second of six that torch takes
    try:
        from hf_transfer.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("hf-transfer: interrupted", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # else Python looks for garbage among half a million objects: two seconds


if __name__ == "__main__":
    sys.exit(main())
