"""From a Workspace to what runs: a pure planner, and renderers of its plan."""
