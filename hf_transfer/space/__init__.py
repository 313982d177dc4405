"""The app in the browser: try models, see how they were made, train your own.

It trains for many visitors at once, so it stands above everything else; it calls the public
functions of the rooms, and knows no library's details. Read `limits` and `uploads` (what comes in),
`visitors` and `jobs` (who is here, what is trained for whom), `worker` (the process that trains),
then `site`, the three tabs with `login`, `page` and `app`, which serves it.
"""
