"""Our version, those of other packages, and the message if another one overwrote ours."""

import functools

__version__ = "0.1.0"

# A downloader written in Rust that installs a package of the same name.
OVERWRITTEN = (
    "the distribution 'hf_transfer' (a downloader) is installed over 'hf-transfer-learning'; "
    "run: pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps "
    "hf-transfer-learning"
)


@functools.cache
def version_of(package: str) -> str:
    """Return the installed version of a package, read once: it takes milliseconds each time."""
    from importlib.metadata import version

    return version(package)
