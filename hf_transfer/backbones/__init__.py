"""Networks of three libraries: found, built, loaded, traced, grouped in a sweep, saved.

Each library's module owns all that is its own (`from_timm`, `from_transformers`,
`from_torchvision`). Knows nothing of phases or training. Read `load` and `layouts` first, then
`building` and `trace`.
"""
