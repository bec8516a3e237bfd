{{/* Name of the chart, as labels carry it. */}}
{{- define "dedicate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the release's objects; 50 characters leave room for suffixes. */}}
{{- define "dedicate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "dedicate.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "dedicate.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of objects outside a namespace, where two releases of one name would meet. */}}
{{- define "dedicate.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "dedicate.fullname" .) -}}
{{- end -}}

{{- define "dedicate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dedicate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What selects the operator's pod; never changes, because a Deployment's selector may not. */}}
{{- define "dedicate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dedicate.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object, by component: (dict "root" $ "component" "operator"). */}}
{{- define "dedicate.labels" -}}
app.kubernetes.io/name: {{ include "dedicate.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: dedicate
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* repository:tag, and @digest where one is given: (dict "root" $ "image" .Values.operator.image). */}}
{{- define "dedicate.image" -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The operator's environment, as docs/contract.md lists it. */}}
{{- define "dedicate.environment" -}}
- name: DEDICATE_RUNTIME_IMAGE
  value: {{ include "dedicate.image" (dict "root" . "image" .Values.runtime.image) | quote }}
- name: DEDICATE_RUNTIME_IMAGE_PULL_SECRETS
  value: {{ join "," .Values.runtime.imagePullSecrets | quote }}
- name: DEDICATE_WATCH_NAMESPACES
  value: {{ join "," .Values.watch.namespaces | quote }}
- name: DEDICATE_LEASE_NAME
  value: {{ include "dedicate.fullname" . | quote }}
- name: DEDICATE_LEASE_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: DEDICATE_ROUTE_TYPE
  value: {{ .Values.route.type | quote }}
- name: DEDICATE_ROUTE_HOST
  value: {{ .Values.route.host | quote }}
- name: DEDICATE_ROUTE_CLASS_NAME
  value: {{ .Values.route.className | quote }}
- name: DEDICATE_ROUTE_CONTROLLER_PROFILE
  value: {{ .Values.route.controllerProfile | quote }}
- name: DEDICATE_ROUTE_PARENT_REFS
  value: {{ .Values.route.parentRefs | toJson | quote }}
- name: DEDICATE_ROUTE_EXTERNAL_SCHEME
  value: {{ .Values.route.externalScheme | quote }}
- name: DEDICATE_ROUTE_EXTERNAL_PORT
  value: {{ .Values.route.externalPort | default "" | toString | quote }}
- name: DEDICATE_ROUTE_EXTERNAL_TLS_PORT
  value: {{ .Values.route.externalTLSPort | default "" | toString | quote }}
- name: DEDICATE_PROMETHEUS_URL
  value: {{ .Values.autoscaling.prometheusUrl | quote }}
{{- $policy := .Values.networkPolicy.endpoints }}
{{- $operator := include "dedicate.peer" . | fromYaml }}
- name: DEDICATE_NETWORK_POLICY_MODE
  value: {{ $policy.mode | quote }}
- name: DEDICATE_NETWORK_POLICY_ALLOW_FROM
  value: {{ $policy.allowFrom | toJson | quote }}
- name: DEDICATE_NETWORK_POLICY_MANAGEMENT_FROM
  value: {{ prepend $policy.metricsFrom $operator | toJson | quote }}
- name: DEDICATE_NETWORK_POLICY_EXTRA_EGRESS
  value: {{ $policy.extraEgress | toJson | quote }}
- name: DEDICATE_HUB_ENDPOINT
  value: {{ .Values.models.hubEndpoint | quote }}
- name: DEDICATE_LOG_FORMAT
  value: {{ .Values.logging.format | quote }}
- name: DEDICATE_LOG_LEVEL
  value: {{ .Values.logging.level | quote }}
- name: DEDICATE_LIVENESS_PORT
  value: {{ .Values.ports.liveness | toString | quote }}
- name: DEDICATE_METRICS_PORT
  value: {{ ternary (toString .Values.ports.metrics) "" .Values.metrics.enabled | quote }}
{{- end -}}

{{/* Security context of a pod, after the restricted Pod Security Standard. */}}
{{- define "dedicate.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.podSecurityContext.runAsUser }}
runAsUser: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurityContext.runAsGroup }}
runAsGroup: {{ int64 . }}
{{- end }}
{{- with .Values.podSecurityContext.fsGroup }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security context of a container, after the restricted Pod Security Standard; there is no knob to weaken it. */}}
{{- define "dedicate.containerSecurityContext" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What the kubelet would mount by itself, with a lifetime of our choosing. */}}
{{- define "dedicate.tokenVolume" -}}
- name: token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: {{ int64 .Values.serviceAccount.tokenExpirationSeconds }}
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end -}}

{{/* What the operator may do, and why, row by row as docs/rbac.md has it. */}}
{{- define "dedicate.rules" -}}
# The resources that it serves.
- apiGroups: [dedicate.dev]
  resources: [dedicatedendpoints]
  verbs: [get, list, watch]
- apiGroups: [dedicate.dev]
  resources: [dedicatedendpoints/status]
  verbs: [patch]
# Their children.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [ingresses, networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
# Only some clusters know these two; the right to what does not exist does no harm.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch, create, patch, delete]
# Where routes lead. In a Role the first has no effect: classes are in no namespace, and the operator does without.
- apiGroups: [networking.k8s.io]
  resources: [ingressclasses]
  verbs: [list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways]
  verbs: [list, watch]
# Why a pod does not start.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
# The commit that a model's first download found, written once; no ConfigMap is ever read.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
# The generated key, written once; no Secret is ever read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
{{- end -}}

{{/* The operator's pods, as a NetworkPolicy of another namespace names them. */}}
{{- define "dedicate.peer" -}}
namespaceSelector:
  matchLabels:
    kubernetes.io/metadata.name: {{ .Release.Namespace | quote }}
podSelector:
  matchLabels:
    {{- include "dedicate.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/* Egress to the API server, and to DNS (NodeLocal DNSCache listens at the address given). */}}
{{- define "dedicate.egress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServer.ports }}
    - protocol: TCP
      port: {{ int . }}
    {{- end }}
  {{- with .Values.networkPolicy.apiServer.cidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
- ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
  to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
    - ipBlock:
        cidr: 169.254.20.10/32
{{- end -}}
