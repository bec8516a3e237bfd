"""The sets of values that the chart is rendered with: as it comes, with everything, and as people run it."""

_DIGEST = f"sha256:{'0123456789abcdef' * 4}"
_MONITORS = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "monitoring"}},
    "podMonitor": {"enabled": True, "labels": {"release": "monitoring"}},
    "prometheusRule": {"enabled": True, "alertLabels": {"team": "platform"}},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Dedicate"}},
}

VALUE_SETS = {
    "defaults": {},
    "everything": {
        "fullnameOverride": "serving",
        "operator": {"image": {"repository": "registry.example.com/operator", "tag": "v2", "digest": _DIGEST}},
        "imagePullSecrets": [{"name": "registry"}],
        "replicas": 3,
        "serviceAccount": {"name": "operator", "annotations": {"role": "x"}, "tokenExpirationSeconds": 600},
        "runtime": {
            "image": {"repository": "registry.example.com/runtime", "digest": _DIGEST},
            "imagePullSecrets": ["registry"],
        },
        "route": {
            "type": "HTTPRoute",
            "host": "llm.example.com",
            "className": "traefik",
            "controllerProfile": "NGINX",
            "parentRefs": [{"namespace": "infra", "name": "public", "sectionName": "https"}],
            "externalScheme": "https",
            "externalPort": 8080,
            "externalTLSPort": 8443,
        },
        "logging": {"format": "plain", "level": "debug"},
        "ports": {"liveness": 8180, "metrics": 8181},
        "metrics": _MONITORS,
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "extraEnv": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "podAnnotations": {"note": "1"},
        "podLabels": {"team": "ml"},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
        "networkPolicy": {
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "apiServer": {"ports": [16443], "cidrs": ["10.0.0.0/8"]},
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 3128}]}],
            "endpoints": {
                "mode": "None",
                "allowFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "traefik"}}}],
                "metricsFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                "extraEgress": [{"ports": [{"protocol": "TCP", "port": 8080}]}],
            },
        },
        "tests": {"endpoint": {"url": "http://seallm.default.svc/seallm/v1", "keySecretName": "seallm-api-keys"}},
    },
    "two-namespaces": {
        "watch": {"namespaces": ["default", "kube-public"]},
        "metrics": {"podMonitor": {"enabled": True}},
    },
    "bare": {
        "crds": {"install": False},
        "replicas": 1,
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "theirs"},
        "metrics": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "tests": {"enabled": False},
    },
}
