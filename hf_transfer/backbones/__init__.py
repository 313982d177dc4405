"""Networks of three libraries: found, built, loaded, traced, grouped in a sweep, saved.

Each library has its own module (`from_timm`, `from_transformers`, `from_torchvision`); nothing
else depends on the library. Knows nothing of phases or training. Read `load` and `layouts` first,
then `building` and `trace`.
"""
