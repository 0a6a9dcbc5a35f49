"""One module per subcommand: options in, one call into a package, the result rendered. No logic of its own.

`weightyard.cli` lists them by import path and loads one only when it is run.
"""
