package topics

import "strconv"

// Partition is one of a topic's partitions: within it, records have an order. It is fit to be a key of a map.
type Partition struct {
	Topic Topic
	ID    int32 // from 0 on
}

// Partition is the topic's partition of that number.
func (t Topic) Partition(id int32) Partition { return Partition{t, id} }

// String is <topic>/<number>, as messages to operators name a partition.
func (p Partition) String() string { return string(p.Topic) + "/" + strconv.FormatInt(int64(p.ID), 10) }

// At is the place of an offset in the partition.
func (p Partition) At(offset int64) Place { return Place{p, offset} }

// Place is where a record stands in the log. It is fit to be a key of a map.
type Place struct {
	Partition
	Offset int64
}

// String is <topic>/<partition>/<offset>.
func (p Place) String() string {
	b := append(append(make([]byte, 0, 48), p.Topic...), '/')
	b = append(strconv.AppendInt(b, int64(p.ID), 10), '/')
	return string(strconv.AppendInt(b, p.Offset, 10))
}

// Ends are offsets by partition, of one topic or of several. All records below an end are meant; the one at the end is not. So they
// say where the log ends, how far a reader has come, or from where on it has to read. Of a partition that is missing nothing is meant.
type Ends map[Partition]int64

// Add raises the end of a partition; a lower one changes nothing.
func (e Ends) Add(of Partition, end int64) { e[of] = max(e[of], end) }

// PartitionOf is the number of the partition, of n, that records with a key stand in: murmur2 as the Java client and franz-go place it
// (org.apache.kafka.common.utils.Utils.murmur2, toPositive). librdkafka's default places keys elsewhere.
func PartitionOf(key []byte, n int32) int32 {
	if n <= 1 {
		return 0
	}
	return int32(murmur2(key)&0x7fffffff) % n
}

func murmur2(b []byte) uint32 {
	const (
		seed uint32 = 0x9747b28c
		m    uint32 = 0x5bd1e995
	)
	h := seed ^ uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		k := uint32(b[3])<<24 | uint32(b[2])<<16 | uint32(b[1])<<8 | uint32(b[0])
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}
