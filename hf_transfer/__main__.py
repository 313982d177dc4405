"""The program: `hf-transfer`, and `python -m hf_transfer`."""

import sys


def main() -> int:
    """Run the command line and return its exit status; Ctrl-C is a line, however early it comes."""
    try:
        from hf_transfer.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("hf-transfer: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
