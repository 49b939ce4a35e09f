global:
  scrape_interval: {{ .Values.prometheus.embedded.scrapeInterval }}
  scrape_timeout: {{ .Values.prometheus.embedded.scrapeInterval }}
  evaluation_interval: {{ .Values.prometheus.embedded.scrapeInterval }}
rule_files: [/etc/prometheus/rules.yml]
scrape_configs:
{{- $metrics := .Values.metrics }}
{{- $secured := or $metrics.tls.secret $metrics.auth.secret }}
{{- $jobs := list (list "retinue" "operator, gateway, emulator") }}
{{- if $secured }}
{{- $jobs = list (list "retinue" "operator, gateway") (list "retinue-devices" "emulator") }}
{{- end }}
# Operator, gateway and emulated devices: their series name namespaces of their own.
{{- range $jobs }}
- job_name: {{ first . }}
  honor_labels: true
  {{- if and $secured (eq (first .) "retinue") }}
  {{- if $metrics.tls.secret }}
  scheme: https
  tls_config:
    {{- if $metrics.tls.caKey }}
    ca_file: /secrets/metrics-ca/{{ $metrics.tls.caKey }}
    server_name: {{ include "retinue.metricsServerName" $ }}
    {{- else }}
    insecure_skip_verify: true
    {{- end }}
  {{- end }}
  {{- if $metrics.auth.secret }}
  authorization: {credentials_file: /secrets/metrics-auth/{{ $metrics.auth.sentKey }}}
  {{- end }}
  {{- end }}
  kubernetes_sd_configs:
  - role: pod
    namespaces: {names: [{{ $.Release.Namespace }}]}
    selectors:
    - role: pod
      label: app.kubernetes.io/instance={{ $.Release.Name }},app.kubernetes.io/component in ({{ last . }})
  relabel_configs:
  - {action: keep, source_labels: [__meta_kubernetes_pod_container_port_name], regex: metrics}
  - {action: replace, source_labels: [__meta_kubernetes_namespace], target_label: namespace}
  - {action: replace, source_labels: [__meta_kubernetes_pod_name], target_label: pod}
{{- end }}
# Engines and tier servers.
- job_name: retinue-pods
  kubernetes_sd_configs:
  - role: pod
    {{- with .Values.watch.namespaces }}
    namespaces: {names: [{{ join ", " . }}]}
    {{- end }}
    selectors: [{role: pod, label: app.kubernetes.io/managed-by=retinue}]
  relabel_configs:
  - {action: keep, source_labels: [__meta_kubernetes_pod_container_port_name], regex: http}
  - {action: keep, source_labels: [__meta_kubernetes_pod_phase], regex: Running}
  - {action: replace, source_labels: [__meta_kubernetes_namespace], target_label: namespace}
  - {action: replace, source_labels: [__meta_kubernetes_pod_name], target_label: pod}
  {{- range $target, $source := include "retinue.podLabels" . | fromYaml }}
  - {action: replace, source_labels: [__meta_kubernetes_pod_label_{{ $source }}], target_label: {{ $target }}}
  {{- end }}
