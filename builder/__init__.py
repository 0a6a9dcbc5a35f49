"""Source -> variants -> layers -> published image: the command that CI runs."""
