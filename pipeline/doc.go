// Package pipeline is the machinery on Kafka: it appends events, reads them in order and judges duplicates, keeps
// positions with what was folded, sets aside what is not valid, and carries the embedded broker.
//
// It knows no tables and no sockets: those are sinks, declared here as an interface and implemented by their owners.
package pipeline
