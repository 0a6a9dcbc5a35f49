"""The only privileged component: binds a cached model to a pod's volume directory and unbinds it. Nothing else.

It leaves the network, keeps two capabilities, reads no model, and accepts orders from one user over a unix socket. Its
code is in this package, apart from digests, errors, the opening of a socket and the standard library.
"""
