// Package pipeline is the machinery on Kafka: it appends events, reads them in order, tells duplicates, moves positions together with
// what was applied, sets aside what is not valid, and holds the embedded broker.
//
// It knows no tables and no sockets: those are behind the interface Sink, which is declared here and implemented by their owners.
//
// Where to begin reading: Kafka and Log (how the log is asked), Producer (how events get in), Consumer with Sink and Batch (how they are
// read; the states of a partition are drawn at Consumer and worker), Tail (what the edge reads, with its two watermarks), Window and
// Windows (what a duplicate is, and who remembers), Gate (what becomes of records that outsiders wrote wrongly), AgreeContract and
// Watch (what must never change of a log), Repartition (how it is changed all the same: into another log).
package pipeline
