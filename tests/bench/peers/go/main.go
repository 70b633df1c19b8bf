// What elections of etcd's own Go library cost: clientv3/concurrency, Session and Election.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math"
	"net/http"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"

	v3 "go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"golang.org/x/sync/errgroup"
)

const (
	ttl     = 30                     // seconds
	idleTTL = 5                      // seconds
	quiet   = 150 * time.Millisecond // everything has become quiet
	soon    = 15 * time.Millisecond
	atOnce  = 256 // campaigns under way
)

var (
	endpoint = flag.String("endpoint", "127.0.0.1:2379", "where etcd serves")
	quick    = flag.Bool("quick", false, "fewer rounds")
	only     = flag.String("only", "", "only measures that have this in their names")

	ctx = context.Background()
	// All elections of this run are below it.
	run = fmt.Sprintf("peers/%x", time.Now().UnixNano())
)

func main() {
	flag.Parse()
	if wants("campaign, session held") {
		held(rounds(300))
	}
	if wants("campaign from nothing") {
		fromNothing(rounds(300))
	}
	handover("handover, 2 candidates", 2, quiet)
	handover("handover, 2 candidates, soon", 2, soon)
	handover("handover, 50 candidates", 50, quiet)
	many(rounds(10_000))
	idle()
}

func held(rounds int) {
	c := newCandidate(ttl)
	defer c.close()
	warm := c.lead("warm")
	must(warm.Resign(ctx))
	var times []time.Duration
	for round := 0; round < rounds; round++ {
		begun := time.Now()
		election := c.lead(fmt.Sprintf("held-%d", round))
		times = append(times, time.Since(begun))
		must(election.Resign(ctx))
	}
	tellTimes("campaign, session held", times)
}

func fromNothing(rounds int) {
	var times []time.Duration
	for round := 0; round < rounds; round++ {
		begun := time.Now()
		c := newCandidate(ttl)
		election := c.lead("nothing")
		times = append(times, time.Since(begun))
		must(election.Resign(ctx))
		c.close()
	}
	tellTimes("campaign from nothing", times)
}

// waiting is a candidate, and when it came to lead.
type waiting struct {
	candidate
	election *concurrency.Election
	led      chan time.Time
}

func stand(ctx context.Context, c candidate, name string) waiting {
	w := waiting{c, concurrency.NewElection(c.session, key(name)), make(chan time.Time, 1)}
	go func() {
		defer close(w.led)
		if err := w.election.Campaign(ctx, "value"); ctx.Err() == nil {
			must(err)
			w.led <- time.Now()
		}
	}()
	return w
}

// leave ends it, once its context is cancelled.
func (w waiting) leave() {
	for range w.led {
	}
	w.close()
}

func handover(measure string, candidates int, quiet time.Duration) {
	if !wants(measure) {
		return
	}
	election := fmt.Sprintf("over-%d-%v", candidates, quiet)
	looks := newClient()
	defer looks.Close()
	ctx, cancel := context.WithCancel(ctx)
	var queue []waiting
	for n := 1; n <= candidates; n++ {
		queue = append(queue, stand(ctx, newCandidate(ttl), election))
		untilEntered(looks, election, n)
	}
	<-queue[0].led
	var times []time.Duration
	for round := 0; round < rounds(100); round++ {
		time.Sleep(quiet)
		leads, next := queue[0], queue[1]
		begun := time.Now()
		must(leads.election.Resign(ctx))
		times = append(times, (<-next.led).Sub(begun))
		// The one that resigned stands again, as the last.
		queue = append(queue[1:], stand(ctx, leads.candidate, election))
		untilEntered(looks, election, candidates)
	}
	cancel()
	for _, w := range queue {
		w.leave()
	}
	tellTimes(measure, times)
}

func many(count int) {
	lead := fmt.Sprintf("many: lead %d, each", count)
	holds := fmt.Sprintf("many: memory of one of %d held, bytes", count)
	waits := fmt.Sprintf("many: memory of one of %d waiting, bytes", count)
	takeOver := fmt.Sprintf("many: take over %d, each", count)
	if !wants(lead, holds, waits, takeOver) {
		return
	}
	each := func(took time.Duration) float64 { return float64(took.Nanoseconds()) / 1e3 / float64(count) }
	grown := func(before float64) float64 { return math.Max(memory()-before, 0) / float64(count) }

	holder := newCandidate(ttl)
	defer holder.client.Close()
	holder.lead("warm")
	before := memory()
	held := make([]*concurrency.Election, count)
	var campaigns errgroup.Group
	campaigns.SetLimit(atOnce)
	begun := time.Now()
	for n := range held {
		n := n
		campaigns.Go(func() error {
			held[n] = concurrency.NewElection(holder.session, key(fmt.Sprintf("many-%d", n)))
			return held[n].Campaign(ctx, "value")
		})
	}
	must(campaigns.Wait())
	tell(lead, 1, each(time.Since(begun)))
	tell(holds, 1, grown(before))

	other := newCandidate(ttl)
	defer other.close()
	warm := other.lead("warm-2")
	must(warm.Resign(ctx))
	before = memory()
	var taking errgroup.Group
	for n := range held {
		n := n
		taking.Go(func() error {
			return concurrency.NewElection(other.session, key(fmt.Sprintf("many-%d", n))).Campaign(ctx, "value")
		})
	}
	// After its entry, a candidate reads once more, and then watches.
	for entered(holder.client, "many-") < 2*count || metric("etcd_debugging_mvcc_watcher_total ") < float64(count) {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(2 * time.Second)
	tell(waits, 1, grown(before))

	begun = time.Now()
	must(holder.session.Close())
	must(taking.Wait())
	tell(takeOver, 1, each(time.Since(begun)))
	runtime.KeepAlive(held)
}

func idle() {
	measure := "idle: requests a second of a leader and ten followers, TTL 5 s"
	if !wants(measure) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var queue []waiting
	for n := 1; n <= 11; n++ {
		queue = append(queue, stand(ctx, newCandidate(idleTTL), "idle"))
		untilEntered(queue[0].client, "idle", n)
	}
	time.Sleep(idleTTL * time.Second)
	span := 60 * time.Second
	if *quick {
		span = 10 * time.Second
	}
	const requests = "grpc_server_msg_received_total{"
	before := metric(requests)
	time.Sleep(span)
	asked := (metric(requests) - before) / span.Seconds()
	cancel()
	for _, w := range queue {
		w.leave()
	}
	tell(measure, 1, asked)
}

// candidate is a client of its own, with a session.
type candidate struct {
	client  *v3.Client
	session *concurrency.Session
}

func newClient() *v3.Client {
	client, err := v3.New(v3.Config{Endpoints: strings.Split(*endpoint, ","), DialTimeout: 5 * time.Second})
	must(err)
	return client
}

func newCandidate(ttl int) candidate {
	client := newClient()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	must(err)
	return candidate{client, session}
}

func (c candidate) lead(name string) *concurrency.Election {
	election := concurrency.NewElection(c.session, key(name))
	must(election.Campaign(ctx, "value"))
	return election
}

func (c candidate) close() {
	must(c.session.Close())
	c.client.Close()
}

func key(name string) string { return run + "/" + name }

// entered counts the candidates of all elections whose names begin so.
func entered(client *v3.Client, prefix string) int {
	found, err := client.Get(ctx, key(prefix), v3.WithPrefix(), v3.WithCountOnly())
	must(err)
	return int(found.Count)
}

func untilEntered(client *v3.Client, election string, count int) {
	for entered(client, election+"/") < count {
		time.Sleep(2 * time.Millisecond)
	}
}

// memory is what lives on the heap, and the goroutines' stacks.
func memory() float64 {
	time.Sleep(time.Second)
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc + stats.StackInuse)
}

// metric is the sum of etcd's metrics whose lines begin so.
func metric(prefix string) float64 {
	sum := 0.0
	for _, server := range strings.Split(*endpoint, ",") {
		sum += metricOf(server, prefix)
	}
	return sum
}

func metricOf(server, prefix string) float64 {
	response, err := http.Get("http://" + server + "/metrics")
	must(err)
	defer response.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, prefix) {
			count, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64)
			must(err)
			sum += count
		}
	}
	must(lines.Err())
	return sum
}

func wants(measures ...string) bool {
	for _, measure := range measures {
		if strings.Contains(measure, *only) {
			return true
		}
	}
	return false
}

func rounds(all int) int {
	if *quick && all/10 > 5 {
		return all / 10
	} else if *quick {
		return 5
	}
	return all
}

func tellTimes(measure string, times []time.Duration) {
	sort.Slice(times, func(a, b int) bool { return times[a] < times[b] })
	at := func(share float64) float64 {
		return float64(times[int(math.Round(float64(len(times)-1)*share))].Nanoseconds()) / 1e3
	}
	tell(measure, len(times), at(0.5), at(0.99))
}

// tell prints the median and the 99th percentile, or the one value that there is.
func tell(measure string, rounds int, values ...float64) {
	if !wants(measure) {
		return
	}
	round := func(value float64) float64 { return math.Round(value*10) / 10 }
	must(json.NewEncoder(os.Stdout).Encode(struct {
		Peer    string  `json:"peer"`
		Store   string  `json:"store"`
		Measure string  `json:"measure"`
		Rounds  int     `json:"rounds"`
		P50     float64 `json:"p50_us"`
		P99     float64 `json:"p99_us"`
	}{"Go concurrency.Election", "etcd", measure, rounds, round(values[0]), round(values[len(values)-1])}))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
