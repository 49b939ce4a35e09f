// Package prometheus pins Prometheus and promtool for the loopback control plane; go.mod lists them as tools.
package prometheus
