"""Values that a real installation might have, by name: what is rendered, checked and kept as snapshots."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

MATRIX: dict[str, Json] = {
    "defaults": {},
    "agent-only": {"controller": {"enabled": False}},
    "controller-only": {"agent": {"enabled": False}},
    "every-node": {
        "agent": {"nodeSelector": {"nvidia.com/gpu.present": None}, "tolerations": [{"operator": "Exists"}]}
    },
    "private-registry": {
        "imagePullSecrets": ["pull"],
        "agent": {
            "image": {"repository": "registry.corp.example:5000/weightyard/agent", "digest": "sha256:" + "a" * 64},
            "registries": ["registry.corp.example:5000", "*.mirror.example"],
            "plainHttp": ["registry.corp.example:5000"],
            "registryCredentialsSecret": "registry",
            "caConfigMap": "corp-ca",
        },
        "controller": {
            "image": {"repository": "registry.corp.example:5000/weightyard/controller", "tag": "0.1.0"},
            "pullSecrets": [{"namespace": "team-a", "names": ["pull"]}, {"namespace": "team-b"}],
        },
    },
    "behind-a-proxy": {
        "proxy": {"https": "http://proxy.corp.example:3128", "direct": [".corp.example", "10.0.0.0/8"]},
        "agent": {"caSecret": "corp-ca", "extraArgs": ["--fetch-streams=8"]},
        "controller": {
            "caSecret": "corp-ca",
            "plainHttp": ["registry.corp.example:5000"],
            "env": [{"name": "TZ", "value": "UTC"}],
            "extraArgs": ["--builder-image=registry.corp.example/builder:1"],
            "logLevel": "debug",
            "logFormat": "text",
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]},
            ]}}},
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "controller"}},
            }],
        },
    },
    "kubelet-elsewhere": {"agent": {"csi": {"kubeletPath": "/var/lib/k0s/kubelet"}}},
    "containerd": {"agent": {"mirror": {"containerd": "install"}}},
    "containerd-remove": {"agent": {"mirror": {"containerd": "remove"}}},
    "page": {"page": {"enabled": True, "port": 9000, "from": {"kubernetes.io/metadata.name": "ingress"}}},
    "traced": {
        "tracing": {
            "endpoint": "http://collector.monitoring:4318", "serversEndpoint": "http://collector.monitoring:4317",
            "namespaces": {"kubernetes.io/metadata.name": "monitoring"}, "env": {"OTEL_TRACES_SAMPLER": "always_on"},
        }
    },
    "hub-and-memory": {
        "agent": {
            "hub": {"enabled": True},
            "memory": {"base": "512Mi", "tier": "64Gi"},
            "config": {"tiers": {"order": ["shared", "registry"], "shared": [{"s3": {"bucket": "models"}}]}},
            "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
        }
    },
    "wanted": {
        "cachedModels": {
            "llama": {"image": "registry.example/team/llama:v1", "variant": "int4", "pin": True, "tier": "memory"},
            "small": {"image": "registry.example/team/small:v1", "pullSecret": "team", "nodeSelector": {"pool": "a"}},
        },
        "agent": {"pullSecrets": ["team"]},
        "controller": {"nodeConditions": True},
        "crds": {"upgrade": False},
    },
    "peers-given": {
        "agent": {
            "peers": {"existingSecret": "our-peers", "ipv6": True, "upload": "500MB", "zones": "apart", "tls": False}
        }
    },
    "pod-monitored": {"monitoring": {"podMonitor": {"enabled": True, "interval": "1m"}}},
    "monitored": {
        "monitoring": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True},
        },
        "controller": {
            "prometheus": {"url": "http://prometheus.monitoring:9090", "tokenSecret": "prometheus"}
        },
        "networkPolicy": {
            "metricsFrom": {"kubernetes.io/metadata.name": "monitoring"},
            "gatewaysFrom": {"kubernetes.io/metadata.name": "gateways"},
        },
    },
    "unfenced": {
        "networkPolicy": {"enabled": False},
        "agent": {"mirror": {"enabled": False}, "csi": {"enabled": False}, "peers": {"enabled": False}},
    },
    "selinux-and-labels": {
        "commonLabels": {"team": "platform"},
        "agent": {
            "seLinuxOptions": {"type": "spc_t"},
            "updateStrategy": {"type": "OnDelete"},
            "priorityClass": {"create": False, "name": "system-node-critical"},
            "podAnnotations": {"example.com/note": "1"},
        },
    },
}  # fmt: skip
