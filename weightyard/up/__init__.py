"""`weightyard up`: runs cache, planner and inference server on one machine, without a cluster.

One supervisor process per workspace pulls the model, starts the server as a child, waits until it is healthy, and stops
it on request. Other commands (`ps`, `logs`, `down`) read the workspace's directory under the root.
"""
