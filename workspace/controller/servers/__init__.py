"""The servers of a Workspace: how many, on which nodes, what replaces those that go, and their objects. Pure."""
