"""A client of the OCI distribution protocol (distribution-spec v1.1): blobs of any size in flat memory.

`client.py` is the server. Below it, each a decorator of the one interface in `exchange.py`: `auth.py` adds tokens,
`redirect.py` follows redirects, `retry.py` waits and repeats, `transport.py` talks to the network.
"""
