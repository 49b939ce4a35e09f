global:
  scrape_interval: {{ .Values.prometheus.embedded.scrapeInterval }}
  scrape_timeout: {{ .Values.prometheus.embedded.scrapeInterval }}
  evaluation_interval: {{ .Values.prometheus.embedded.scrapeInterval }}
rule_files: [/etc/prometheus/rules.yml]
scrape_configs:
# Operator, gateway and emulated devices: their series name namespaces of their own.
- job_name: retinue
  honor_labels: true
  kubernetes_sd_configs:
  - role: pod
    namespaces: {names: [{{ .Release.Namespace }}]}
    selectors:
    - role: pod
      label: app.kubernetes.io/instance={{ .Release.Name }},app.kubernetes.io/component in (operator, gateway, emulator)
  relabel_configs:
  - {action: keep, source_labels: [__meta_kubernetes_pod_container_port_name], regex: metrics}
  - {action: replace, source_labels: [__meta_kubernetes_namespace], target_label: namespace}
  - {action: replace, source_labels: [__meta_kubernetes_pod_name], target_label: pod}
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
