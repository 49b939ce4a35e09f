"""What of the Helm chart is generated: values, their schema and page, CRDs, roles, dashboards."""
