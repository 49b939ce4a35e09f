// Package lws pins LeaderWorkerSet, beside which benchmarks run; go.mod lists it as a tool.
package lws
