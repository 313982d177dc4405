"""What everything else uses: errors, files, locks, the cache, stored rows, processes, downloads.

Knows nothing of recipes, networks or images. Light: no torch at module level. Read `errors`, then
`files` and `locks`, then `cache`, `shards` and `store`, then `processes` and `download`.
"""
