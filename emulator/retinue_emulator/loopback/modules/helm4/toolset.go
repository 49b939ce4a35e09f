// Package helm4 pins Helm 4, with which the chart is tested; go.mod lists it as a tool.
package helm4
