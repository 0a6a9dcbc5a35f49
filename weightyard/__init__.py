"""The face: one `weightyard` command whose subcommands load lazily from the other packages."""
