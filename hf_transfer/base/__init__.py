"""What everything stands on: errors, files, the cache, shards of numbers, processes, downloads.

Knows nothing of recipes, networks or images. Light: no torch at module level. Read `errors`, then
`files` and `cache`, then `shards` and `processes`.
"""
