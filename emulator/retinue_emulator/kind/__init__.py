"""The whole product on a real cluster: kind nodes with real kubelets, images built here, the chart installed by Helm."""
