"""The one privileged part: binds a cached model onto a pod's volume directory, and unbinds it. It can do nothing else.

It has no network, reads no model, and takes orders from one user over a unix socket. Standard library only, beside
digests and errors.
"""
