// Command matrix runs the contract of ../README.md for pgx or lib/pq: `matrix pgx`, `matrix pq`.
//
// This file has the settings, the units of work and the report; it knows no driver. Next on the
// path: pgx.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	errorsShown   = 5
	turns         = 7
	texts         = 3
	statements    = 10
	rows          = 100
	besideTurns   = 5
	sleeperEvery  = 5
	sleep         = "SELECT pg_sleep(30)"
	cutAfter      = 300 * time.Millisecond
	cutWithin     = 10 * time.Second
	stepWithin    = 60 * time.Second
	divisionError = "22012"
	failedBlock   = "25P02"
	kept          = "committed outer"
)

var steps = []string{
	"connect", "prepared", "pipeline", "copy", "transaction", "error", "cancel",
}

// unit does one client's work in one round; tag is in all that it writes or reads.
type unit func(ctx context.Context, tag int) error

// program is one driver. open opens its usual pool on a database and returns the units of a step,
// or the reason why the driver has no such step; beside is what runs next to a cancelled client.
type program struct {
	driver, module, pool string
	open                 func(ctx context.Context, step, address string, clients int) (opened, error)
}

// opened is a pool with the work of one step.
type opened struct {
	work        unit
	beside      unit
	unsupported string
	close       func()
}

// turn is one repetition of the step `prepared`: a text, its parameter, the row it must give.
type turn struct {
	text  string
	value int
	note  string
}

func preparedTurns(tag int) []turn {
	var all []turn
	for number := range turns {
		for text := range texts {
			note := fmt.Sprintf("text %d", text)
			all = append(all, turn{
				text:  fmt.Sprintf("SELECT $1::int, '%s'", note),
				value: tag*100 + number,
				note:  note,
			})
		}
	}
	return all
}

func copyRow(tag, number int) []any {
	return []any{tag, number, fmt.Sprintf("note %d %d", tag, number)}
}

func copyText(tag int) string {
	var text strings.Builder
	for number := range rows {
		fmt.Fprintf(&text, "%d\t%d\tnote %d %d\n", tag, number, tag, number)
	}
	return text.String()
}

// expect fails unless two results are the same by value.
func expect(got, wanted any) error {
	if reflect.DeepEqual(got, wanted) {
		return nil
	}
	return fmt.Errorf("wrong result: %.100v instead of %.100v", got, wanted)
}

// expectState fails unless err has an SQLSTATE, which both drivers' errors tell by SQLState().
func expectState(err error, wanted string) error {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return expect(state.SQLState(), wanted)
	}
	return fmt.Errorf("wrong error: %w instead of %s", err, wanted)
}

// expectCut fails unless err is the end of a statement that was cut off in time.
func expectCut(err error, begun time.Time) error {
	if time.Since(begun) > cutWithin {
		return errors.New("the statement was not cut off")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return expectState(err, "57014")
}

// first runs actions until one fails.
func first(actions ...func() error) error {
	for _, action := range actions {
		if err := action(); err != nil {
			return err
		}
	}
	return nil
}

func number(name string, otherwise int) int {
	if given, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return given
	}
	return otherwise
}

func address(step string) string {
	place := url.URL{
		Scheme: "postgres",
		User:   url.UserPassword(os.Getenv("PGUSER"), os.Getenv("PGPASSWORD")),
		Host:   os.Getenv("PGHOST") + ":" + os.Getenv("PGPORT"),
		Path:   os.Getenv("PGDATABASE") + "_" + step,
	}
	return place.String()
}

func say(fields map[string]any) {
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err) // maps of strings, numbers and lists can be written
	}
	fmt.Println(string(line))
}

// tally counts units that went well and collects what did not.
type tally struct {
	lock   sync.Mutex
	done   int
	failed []string
}

func (t *tally) add(err error) {
	t.lock.Lock()
	defer t.lock.Unlock()
	if err == nil {
		t.done++
		return
	}
	t.failed = append(t.failed, err.Error())
}

func (t *tally) report(step string, begun time.Time) {
	shown := append([]string{}, t.failed[:min(errorsShown, len(t.failed))]...)
	if more := len(t.failed) - len(shown); more > 0 {
		shown = append(shown, fmt.Sprintf("and %d more", more))
	}
	seconds := time.Since(begun).Round(10 * time.Millisecond).Seconds()
	say(map[string]any{"step": step, "done": t.done, "errors": shown, "seconds": seconds})
}

func (p program) run(step string, clients, rounds int) error {
	ctx, stop := context.WithTimeout(context.Background(), stepWithin)
	defer stop()
	begun := time.Now()
	pool, err := p.open(ctx, step, address(step), clients)
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	if pool.unsupported != "" {
		say(map[string]any{"step": step, "unsupported": pool.unsupported})
		return nil
	}
	var all tally
	var running sync.WaitGroup
	for client := range clients {
		work := pool.work
		if step == "cancel" && client%sleeperEvery != 0 {
			work = pool.beside
		}
		running.Go(func() {
			for round := range rounds {
				all.add(work(ctx, client*1000+round))
			}
		})
	}
	running.Wait()
	pool.close()
	all.report(step, begun)
	return nil
}

// version is the one that the build took of a module.
func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	for _, used := range info.Deps {
		if used.Path == module {
			return strings.TrimPrefix(used.Version, "v")
		}
	}
	return "unknown"
}

func main() {
	programs := map[string]program{"pgx": pgxProgram, "pq": pqProgram}
	if len(os.Args) != 2 || programs[os.Args[1]].open == nil {
		fmt.Fprintln(os.Stderr, "usage: matrix pgx|pq")
		os.Exit(2)
	}
	chosen := programs[os.Args[1]]
	say(map[string]any{
		"driver": chosen.driver, "version": version(chosen.module), "pool": chosen.pool,
	})
	for _, step := range steps {
		if err := chosen.run(step, number("DRIVER_CLIENTS", 50), number("DRIVER_ROUNDS", 2)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
