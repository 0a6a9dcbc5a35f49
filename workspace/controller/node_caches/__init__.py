"""The caches of nodes: statuses of CachedModels, marks on Nodes, agents that fall silent."""
