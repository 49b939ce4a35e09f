// Package controlplane pins the Kubernetes binaries of the loopback control plane; go.mod lists them as tools.
package controlplane
