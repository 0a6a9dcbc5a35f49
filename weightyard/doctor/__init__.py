"""`weightyard doctor`: is this machine, is this cluster, fit for Weightyard?

Facts are gathered first (`gathering`, `clusters`, `pods`), then judged by pure checks (`node_checks`,
`cluster_checks`): each says how it is, what was seen and what to do. A pod on a node gathers the same facts as this
machine's own doctor.
"""
