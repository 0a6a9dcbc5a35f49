"""`weightyard up`: the composition of cache, planner and inference server on one machine, without a cluster.

One supervising process per workspace: it pulls, starts the server as a child, waits until it is healthy, and stops it
when asked. What others need to know (`ps`, `logs`, `down`) is in the workspace's directory under the root.
"""
