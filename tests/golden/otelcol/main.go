// Prints where the ring of the Collector's load-balancing exporter places keys. It is compiled together with the
// exporter's own consistent_hashing.go; the argument is the name of that ring in Spanring.
package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"sort"
)

// names returns format with 0 to count - 1.
func names(format string, count int) []string {
	all := make([]string, count)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return all
}

func main() {
	cases := []struct {
		name      string
		endpoints []string
	}{
		{"one", []string{"10.0.0.1:4317"}},
		{"two", []string{"endpoint-1", "endpoint-2"}},
		{"three", []string{"10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"}},
		{"bare", []string{"10.0.0.1", "10.0.0.10", "10.0.0.2", "10.0.0.3"}},
		{"ipv6", []string{"[2001:db8::1]", "[2001:db8::a:0:0:2]", "[fd00::3]"}},
		{"names", names("collector-%d.collectors.obs.svc:4317", 7)},
		{"hundred", names("10.1.%d.7:4317", 100)},
		{"300", names("endpoint-%d", 300)},
		{"700", names("endpoint-%d", 700)},
	}
	for _, one := range cases {
		// The exporter's resolvers sort by bytes.
		sort.Strings(one.endpoints)
		ring := newHashRing(one.endpoints)
		digest := crc32.NewIEEE()
		for pos := range maxPositions {
			fmt.Fprintln(digest, ring.findEndpoint(position(pos)))
		}
		fmt.Printf("%s,%s,owners,,%08x\n", os.Args[1], one.name, digest.Sum32())
		for step := range uint64(16) {
			key := binary.BigEndian.AppendUint64(nil, step*0x9e3779b97f4a7c15)
			key = binary.BigEndian.AppendUint64(key, (step+1)*0xf39cc0605cedc835)
			slot := crc32.ChecksumIEEE(key) % maxPositions
			fmt.Printf("%s,%s,%s,%d,%s\n", os.Args[1], one.name, hex.EncodeToString(key), slot, ring.endpointFor(key))
		}
	}
}
