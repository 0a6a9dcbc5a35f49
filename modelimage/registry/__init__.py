"""A client of the OCI distribution protocol (distribution-spec v1.1): blobs of any size in constant memory.

`client.py` implements the repository. Below it, each a decorator of the one interface in `exchange.py`: `auth.py` adds
tokens, `redirect.py` follows redirects, `retry.py` waits and retries, `transport.py` uses the network.
"""
