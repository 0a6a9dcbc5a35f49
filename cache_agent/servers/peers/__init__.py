"""What other nodes may ask of this one: chunks of files that it holds or is fetching. Nothing here changes state."""
