{{/* What all pods of the chart have in common. */}}

{{/* Compute resources without the amounts that are empty. */}}
{{- define "retinue.resources" -}}
{{- $resources := dict }}
{{- range $kind := list "requests" "limits" }}
{{- $amounts := dict }}
{{- range $name, $amount := index $.resources $kind }}
{{- if $amount }}{{ $_ := set $amounts $name $amount }}{{ end }}
{{- end }}
{{- if $amounts }}{{ $_ := set $resources $kind $amounts }}{{ end }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Pod Security level restricted. */}}
{{- define "retinue.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "retinue.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Metadata of a pod template. */}}
{{- define "retinue.podMetadata" -}}
labels:
  {{- include "retinue.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: {{ .component }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Where a pod may run, and with which pull secrets. */}}
{{- define "retinue.scheduling" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Replicas on different nodes and zones where there are some. */}}
{{- define "retinue.spread" -}}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "retinue.selector" $ | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}

{{/* A service account that gives its token to nobody but the pods that ask for it. */}}
{{- define "retinue.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "retinue.account" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "retinue.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{- define "retinue.disruptionBudget" -}}
{{- if and .values.podDisruptionBudget.enabled (gt (int .values.replicas) 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "retinue.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "retinue.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "retinue.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* Egress that every client of the API server needs: names and the API server, whose address no selector knows. */}}
{{- define "retinue.apiEgress" -}}
- ports:
  - {port: 53, protocol: UDP}
  - {port: 53, protocol: TCP}
- ports:
  {{- range .Values.networkPolicy.apiServerPorts }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}

{{/* Who may scrape a port. */}}
{{- define "retinue.metricsIngress" -}}
- ports:
  - {port: {{ .port }}, protocol: TCP}
  {{- with .root.Values.networkPolicy.metricsFrom }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What follows the port of a probe. */}}
{{- define "retinue.probeScheme" -}}
{{- if .Values.metrics.tls.secret }}, scheme: HTTPS{{ end }}
{{- end }}

{{/* Environment of a server of metrics; tls: the start of the variables for its certificate, own: that of all others. */}}
{{- define "retinue.metricsEnv" -}}
{{- $metrics := .root.Values.metrics }}
{{- if $metrics.tls.secret }}
- {name: {{ .tls }}TLS_CERT_FILE, value: /secrets/metrics-tls/{{ $metrics.tls.certificateKey }}}
- {name: {{ .tls }}TLS_KEY_FILE, value: /secrets/metrics-tls/{{ $metrics.tls.keyKey }}}
{{- end }}
{{- if $metrics.auth.secret }}
- {name: {{ .own }}METRICS_TOKEN_FILE, value: /secrets/metrics-auth/{{ $metrics.auth.acceptedKey }}}
{{- end }}
{{- end }}

{{- define "retinue.metricsMounts" -}}
{{- if .Values.metrics.tls.secret }}
- {name: metrics-tls, mountPath: /secrets/metrics-tls, readOnly: true}
{{- end }}
{{- if .Values.metrics.auth.secret }}
- {name: metrics-auth, mountPath: /secrets/metrics-auth, readOnly: true}
{{- end }}
{{- end }}

{{- define "retinue.metricsVolumes" -}}
{{- with .Values.metrics }}
{{- if .tls.secret }}
{{ include "retinue.secretVolume" (dict "name" "metrics-tls" "secret" .tls.secret "keys" (list .tls.certificateKey .tls.keyKey)) }}
{{- end }}
{{- if .auth.secret }}
{{ include "retinue.secretVolume" (dict "name" "metrics-auth" "secret" .auth.secret "keys" (list .auth.acceptedKey)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Some keys of a Secret as files, which follow its changes. */}}
{{- define "retinue.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
    {{- range .keys }}
    - {key: {{ . }}, path: {{ . }}}
    {{- end }}
{{- end }}

{{/* The key for the authority that scrapers trust, nothing if there is none to trust. */}}
{{- define "retinue.metricsAuthority" -}}
{{- if .Values.metrics.tls.secret }}{{ .Values.metrics.tls.caKey }}{{ end }}
{{- end }}

{{/* The name that scrapers expect in the certificate of the metrics ports. */}}
{{- define "retinue.metricsServerName" -}}
{{- .Values.metrics.tls.serverName | default (printf "%s-metrics.%s.svc" (include "retinue.fullname" .) .Release.Namespace) }}
{{- end }}

{{/* Engines and tier servers, wherever they run. */}}
{{- define "retinue.engineEgress" -}}
- to:
  - namespaceSelector: {}
    podSelector:
      matchLabels:
        app.kubernetes.io/managed-by: retinue
  ports:
  - {port: 8000, protocol: TCP}
{{- end }}
