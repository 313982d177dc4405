"""The version, and the message if another distribution overwrote this one."""

__version__ = "0.1.0"

# A downloader written in Rust that installs a package of the same name.
OVERWRITTEN = (
    "the distribution 'hf_transfer' (a downloader) is installed over 'hf-transfer-learning'; "
    "run: pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps "
    "hf-transfer-learning"
)
