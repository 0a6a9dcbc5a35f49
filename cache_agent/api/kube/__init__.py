"""A Kubernetes API client: where the server is, requests, watches, and its errors as ours.

    connection     where an API server is and how to authenticate: a pod's service account or a kubeconfig
    kube_client    requests and single watches over one connection pool
    follower       list and watch of one path, resumed for ever
    token_reviews  who a bearer token belongs to, and whether they may see the page
    refusals       the API server's error responses as Weightyard's errors

The agent, the controller and the commands share it, so that TLS, proxies and rotating tokens work alike everywhere.
"""
