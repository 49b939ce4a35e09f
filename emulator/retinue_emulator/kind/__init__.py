"""The whole product on real kubelets: a kind cluster, images built here, the chart installed by Helm."""
