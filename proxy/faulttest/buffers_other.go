//go:build !unix

package faulttest

func setBuffers(uintptr, int) {}
