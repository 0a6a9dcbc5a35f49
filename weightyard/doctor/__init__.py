"""`weightyard doctor`: checks whether this machine or a cluster meets Weightyard's requirements.

Facts are gathered first (`gather`, `clusters`, `pods`), then judged by pure checks (`node_checks`, `cluster_checks`).
Each finding has a level, what was seen, and advice. A pod on a node gathers the same facts as the doctor of this
machine.
"""
