"""Plans how to run a Workspace, and renders the plan for each target. The planner is pure."""
