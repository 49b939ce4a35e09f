// Package etcd pins the etcd server of the loopback control plane.
package etcd
