"""A Workspace's status, and the Events about its changes. Pure."""
