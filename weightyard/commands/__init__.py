"""One module per subcommand: options, one call into a package, the rendered result. No logic of its own.

`weightyard.cli` lists them by import path and imports one only when it runs.
"""
