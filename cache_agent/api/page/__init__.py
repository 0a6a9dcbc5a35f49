"""The web page of a cache: what it shows, how changes reach it, and the files that a browser gets. Read-only.

    node_rows    a node as rows, from its NodeCache; pure
    starts       the timeline of a server's start as a row; pure
    view         rows become a view, and two views the change between them; pure
    feed         looks while somebody reads, and tells each reader the changes
    page_server  serves the feed as server-sent events, and `files/` beside it
    guard        admits to the events whom the API server lets read them

An agent and a controller each give their own look, and guard the events with `guard` or with a token of their own.
"""
