"""The one privileged part: binds a cached model onto a pod's volume directory, and unbinds it. It can do nothing else.

It cuts itself off from the network, keeps two capabilities, reads no model, and takes orders from one user over a
unix socket. All of it that runs is here, beside digests, errors and the opening of a socket; the rest is Python's own.
"""
