"""What helps a user decide: advice, auto, comparisons, additions, the quickstart.

Calls `run` and the public functions of the rooms, and knows no library's details. Read `advise`
with `evidence` and `depth` (judging without training), then `auto` with `attempts` and `choosing`
(trying), then `compare` and `trials`; `add` solves a finished model's head again.
"""
