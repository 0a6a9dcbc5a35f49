"""The Python API: builds, pulls, plans and serves models, and asks this machine's cache. See docs/python.md.

What `weightyard.__all__` names is stable; everything else may change. Functions do what the command of the same name
does, with the same credentials and environment, and raise WeightyardError: its `hint` says what to do next, `retry`
whether the same call may succeed later. Safe for threads. Nothing is printed unless `progress` asks for it: None shows
bars on terminals and in notebooks, True also lines elsewhere, False nothing.
"""
