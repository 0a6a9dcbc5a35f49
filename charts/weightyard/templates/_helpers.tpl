{{/* How objects are called: the release's name, and the chart's unless the release has it in its name. */}}
{{- define "weightyard.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* What selects a component's pods. Never changes: a selector can't. Call with (dict "root" $ "component" NAME). */}}
{{- define "weightyard.selector" -}}
app.kubernetes.io/name: weightyard
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of an object. The controller's NetworkPolicies for workspaces select part-of and component. */}}
{{- define "weightyard.labels" -}}
{{ include "weightyard.selector" . }}
app.kubernetes.io/part-of: weightyard
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "weightyard.image" -}}
{{- with .image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.root.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* A quantity in Mi or Gi (the schema allows no other) as a number of Mi. */}}
{{- define "weightyard.mebibytes" -}}
{{- if hasSuffix "Gi" . }}{{ mul (trimSuffix "Gi" . | int) 1024 }}{{ else }}{{ trimSuffix "Mi" . | int }}{{ end }}
{{- end }}

{{- define "weightyard.memoryLimit" -}}
{{- add (include "weightyard.mebibytes" .Values.agent.memory.base | int) (include "weightyard.mebibytes" .Values.agent.memory.tier | int) }}Mi
{{- end }}

{{- define "weightyard.priorityClass" -}}
{{- default (printf "%s-agent" (include "weightyard.fullname" .)) .Values.agent.priorityClass.name }}
{{- end }}

{{/* What the restricted standard asks of a container, and a read-only root. */}}
{{- define "weightyard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Proxy variables of a container. Kubernetes fills in the API server's address. */}}
{{- define "weightyard.proxy" -}}
{{- with .Values.proxy }}
{{- if or .http .https }}
{{- with .http }}
- {name: HTTP_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with .https }}
- {name: HTTPS_PROXY, value: {{ . | quote }}}
{{- end }}
- {name: NO_PROXY, value: {{ concat (list "$(KUBERNETES_SERVICE_HOST)" ".svc" ".cluster.local") .direct | join "," | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{/* The variables of a component's traces. Nothing when it has none. */}}
{{- define "weightyard.tracing" -}}
{{- with .Values.tracing }}
{{- if .endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
{{- range $name, $value := .env }}
- {name: {{ $name }}, value: {{ toString $value | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The volume with additional certificate authorities; called with a component's values. Nothing when it has none. */}}
{{- define "weightyard.caVolume" -}}
{{- if and .caConfigMap .caSecret }}{{ fail "set caConfigMap or caSecret, not both" }}{{ end }}
{{- if .caConfigMap }}
- name: ca
  configMap: {name: {{ .caConfigMap }}}
{{- else if .caSecret }}
- name: ca
  secret: {secretName: {{ .caSecret }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end }}

{{/* Where Prometheus finds an agent's metrics; called with the interval. */}}
{{- define "weightyard.scrapes" -}}
- port: {{ .port }}
  path: /metrics
  interval: {{ .interval }}
  relabelings:
    - {sourceLabels: [__meta_kubernetes_pod_node_name], targetLabel: node}
{{- end }}

{{/* The controller's image, which the hooks run too. */}}
{{- define "weightyard.controllerImage" -}}
{{ include "weightyard.image" (dict "root" . "image" .Values.controller.image) }}
{{- end }}

{{/* A pod that runs once with an identity of its own. Call with (dict "root" $ "name" NAME "arguments" LIST). */}}
{{- define "weightyard.hookPod" -}}
restartPolicy: Never
serviceAccountName: {{ .name }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.controller.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.controller.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: hook
    image: {{ include "weightyard.controllerImage" .root }}
    imagePullPolicy: {{ .root.Values.controller.image.pullPolicy }}
    args: {{- toYaml .arguments | nindent 6 }}
    resources:
      requests: {cpu: 50m, memory: 128Mi, ephemeral-storage: 16Mi}
      limits: {memory: 256Mi, ephemeral-storage: 64Mi}
    securityContext: {{- include "weightyard.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: scratch, mountPath: /tmp}
volumes:
  - name: scratch
    emptyDir: {sizeLimit: 16Mi}
{{- end }}

{{/* Annotations of a hook; called with its weight. A Job that failed stays, with its log, until the next one; helm 4 prints the log. */}}
{{- define "weightyard.preDelete" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
helm.sh/hook-output-log-policy: hook-failed
{{- end }}
{{- define "weightyard.preUpgrade" -}}
helm.sh/hook: pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
helm.sh/hook-output-log-policy: hook-failed
{{- end }}

{{/* All addresses of both families, without the blocked ones. */}}
{{- define "weightyard.outside" -}}
{{- range $everything := list "0.0.0.0/0" "::/0" }}
{{- $blocked := list }}
{{- range $.Values.networkPolicy.blockedCidrs }}
{{- if eq (contains ":" .) (contains ":" $everything) }}{{ $blocked = append $blocked . }}{{ end }}
{{- end }}
- ipBlock:
    cidr: {{ $everything | quote }}
    {{- with $blocked }}
    except: {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- end }}
