"""The metrics of each task, with intervals by resampling; `by_name` finds what a recipe names."""
