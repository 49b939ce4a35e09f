{{/* Pod labels that become labels of the series: target label to the pod label as Prometheus spells it. */}}
{{- define "retinue.podLabels" -}}
agent_pool: retinue_dev_agent_pool
role: retinue_dev_role
pool: retinue_dev_pool
pool_kind: retinue_dev_pool_kind
retinue_instance: retinue_dev_instance
node_class: retinue_dev_node_class
tier: retinue_dev_tier
{{- end }}

{{/* The rules with their links set. */}}
{{- define "retinue.rules" -}}
{{- $base := .Values.monitoring.rules.runbookBase | trimSuffix "/" }}
{{- .Files.Get "files/rules.yaml" | replace "docs/runbooks/" (printf "%s/" $base) }}
{{- end }}
