// Package helm3 pins Helm 3, with which the chart is tested; go.mod lists it as a tool.
package helm3
