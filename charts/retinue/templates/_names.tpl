{{/* Names, labels and images. Every template is called with a dict: root is the chart's context. */}}

{{- define "retinue.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "retinue.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "retinue.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "retinue.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "retinue.selector" -}}
app.kubernetes.io/name: {{ include "retinue.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "retinue.labels" -}}
{{ include "retinue.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: retinue
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The service account of a component: the name that was set, or that of the Deployment. */}}
{{- define "retinue.account" -}}
{{- $own := printf "%s-%s" (include "retinue.fullname" .root) .component }}
{{- $values := index .root.Values .component }}
{{- $values.serviceAccount.name | default $own }}
{{- end }}

{{/* registry/repository:tag@digest; without a tag that of the chart's appVersion. */}}
{{- define "retinue.image" -}}
{{- $registry := .root.Values.image.registry | trimSuffix "/" }}
{{- $path := ternary .image.repository (printf "%s/%s" $registry .image.repository) (empty $registry) }}
{{- if .image.digest }}
{{- printf "%s@%s" $path .image.digest }}
{{- else }}
{{- printf "%s:%s" $path (.image.tag | default .root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "retinue.priorityClass" -}}
{{- .Values.priorityClass.name | default (ternary (include "retinue.fullname" .) "" .Values.priorityClass.create) }}
{{- end }}

{{/* The Prometheus that the operator asks: the one that was set, else the embedded one, else none. */}}
{{- define "retinue.prometheusURL" -}}
{{- if .Values.prometheus.url }}
{{- .Values.prometheus.url }}
{{- else if .Values.prometheus.embedded.enabled }}
{{- printf "http://%s-prometheus.%s.svc:9090" (include "retinue.fullname" .) .Release.Namespace }}
{{- end }}
{{- end }}

{{- define "retinue.gatewayURL" -}}
{{- if .Values.gateway.url }}
{{- .Values.gateway.url }}
{{- else if .Values.gateway.enabled }}
{{- $scheme := ternary "https" "http" (ne .Values.gateway.tls.secret "") }}
{{- printf "%s://%s-gateway.%s.svc:%v" $scheme (include "retinue.fullname" .) .Release.Namespace .Values.gateway.service.port }}
{{- end }}
{{- end }}

{{/* Whether an object of monitoring.coreos.com is made: "true" or nothing. */}}
{{- define "retinue.monitored" -}}
{{- if eq .create "Always" -}}
true
{{- else if and (eq .create "Auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
true
{{- end }}
{{- end }}
