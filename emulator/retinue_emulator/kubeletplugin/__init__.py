"""The node plugin in kubelet mode: gives real kubelets the devices of the inventory, by device plugin or by DRA."""
