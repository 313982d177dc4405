"""What helps a user decide: the quickstart and its comparison.

Calls `run` and the public functions of the rooms, and knows no library's details.
"""
