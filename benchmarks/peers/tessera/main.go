// Durable entries a second that Tessera's POSIX storage takes on this machine.
//
// So many writers, each of which waits for its entry before it begins the next; as JSON, rounds of entries a second. An entry counts when
// it has its index, durably; with -signed, when a published checkpoint covers it, which Tessera writes ten times a second at most.
// No deduplication (antispam) is on.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	directory := flag.String("directory", "", "directory of the log; must not exist")
	writers := flag.Int("writers", 128, "writers")
	size := flag.Int("size", 1100, "bytes of an entry")
	seconds := flag.Float64("seconds", 4, "length of a round")
	rounds := flag.Int("rounds", 5, "rounds")
	batchAge := flag.Duration("batch-age", 5*time.Millisecond, "how long an entry waits for others")
	signed := flag.Bool("signed", false, "wait for a checkpoint that covers the entry")
	flag.Parse()
	rates, err := measure(*directory, *writers, *size, *rounds, time.Duration(*seconds*float64(time.Second)), *batchAge, *signed)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(rates)
}

func measure(directory string, writers, size, rounds int, length, batchAge time.Duration, signed bool) ([]float64, error) {
	ctx := context.Background()
	secret, _, err := note.GenerateKey(rand.Reader, "benchmark")
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, err
	}
	driver, err := posix.New(ctx, posix.Config{Path: directory})
	if err != nil {
		return nil, err
	}
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(100*time.Millisecond).
		WithBatching(1024, batchAge))
	if err != nil {
		return nil, err
	}
	awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 10*time.Millisecond)
	rates := make([]float64, 0, rounds)
	for range rounds {
		var count atomic.Int64
		var failed atomic.Pointer[error]
		var group sync.WaitGroup
		begin := time.Now()
		for range writers {
			group.Go(func() {
				for time.Since(begin) < length && failed.Load() == nil {
					data := make([]byte, size)
					_, _ = rand.Read(data)
					future := appender.Add(ctx, tessera.NewEntry(data))
					var err error
					if signed {
						_, _, err = awaiter.Await(ctx, future)
					} else {
						_, err = future()
					}
					if err != nil {
						failed.Store(&err)
						return
					}
					count.Add(1)
				}
			})
		}
		group.Wait()
		if cause := failed.Load(); cause != nil {
			return nil, *cause
		}
		rates = append(rates, float64(count.Load())/time.Since(begin).Seconds())
	}
	return rates, shutdown(ctx)
}
