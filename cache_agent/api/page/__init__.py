"""The web page of a cache: what it shows, how changes reach it, and the files that a browser gets. Read-only.

`node_rows` and `view` are pure: what is known becomes rows, and two views become a change. `feed` looks and tells its
readers; `server` serves the feed as server-sent events, and `files/` beside it. An agent and a controller each give
their own look, and guard the routes with `guard` or with a token of their own.
"""
