// Package live shows clients what the log says: as it is read (route), to those who come back (resume), and what an edge derives
// from it: presence, typing that ends by itself, statistics. What a client gets of a kind of event stands in one table
// (topics.Kind.Frames), whether it is shown live or replayed (show).
//
// It knows nothing of what clients say: the gateway takes that.
package live
