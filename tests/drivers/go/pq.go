package main

// lib/pq with the pool of database/sql, by the contract of ../README.md. Next on the path:
// ../java/pom.xml.

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/lib/pq"
)

var pqProgram = program{
	driver: "Go lib/pq", module: "github.com/lib/pq", pool: "database/sql", open: openPq,
}

// rower is what a pool, a connection and a transaction have in common.
type rower interface {
	ExecContext(ctx context.Context, text string, values ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, text string, values ...any) *sql.Row
}

type pqSteps struct {
	pool    *sql.DB
	address string
}

func openPq(_ context.Context, step, address string, clients int) (opened, error) {
	address += "?sslmode=disable" // lib/pq demands TLS unless told
	pool, err := sql.Open("postgres", address)
	if err != nil {
		return opened{}, err
	}
	pool.SetMaxOpenConns(clients)
	pool.SetMaxIdleConns(clients)
	with := pqSteps{pool, address}
	work := map[string]unit{
		"connect":     with.connect,
		"prepared":    with.prepared,
		"copy":        with.copy,
		"transaction": with.transaction,
		"error":       with.fail,
		"cancel":      with.cancel,
	}
	if work[step] == nil {
		return opened{unsupported: "database/sql has one statement in flight a connection"}, nil
	}
	end := func() { _ = pool.Close() }
	return opened{work: work[step], beside: with.beside, close: end}, nil
}

func pqValue(ctx context.Context, on rower, tag int) error {
	var got int
	if err := on.QueryRowContext(ctx, "SELECT $1::int", tag).Scan(&got); err != nil {
		return err
	}
	return expect(got, tag)
}

func (s pqSteps) connect(ctx context.Context, tag int) error {
	own, err := sql.Open("postgres", s.address)
	if err != nil {
		return err
	}
	return errors.Join(pqValue(ctx, own, tag), own.Close())
}

func pqTurn(row *sql.Row, wanted turn) error {
	got := turn{text: wanted.text}
	if err := row.Scan(&got.value, &got.note); err != nil {
		return err
	}
	return expect(got, wanted)
}

// prepared repeats statements with parameters, which lib/pq sends unnamed, and named ones.
func (s pqSteps) prepared(ctx context.Context, tag int) error {
	connection, err := s.pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer connection.Close()
	named := map[string]*sql.Stmt{}
	for _, each := range preparedTurns(tag) {
		if named[each.text] == nil {
			if named[each.text], err = connection.PrepareContext(ctx, each.text); err != nil {
				return err
			}
			defer named[each.text].Close()
		}
		unnamed := connection.QueryRowContext(ctx, each.text, each.value)
		if err := pqTurn(unnamed, each); err != nil {
			return err
		}
		if err := pqTurn(named[each.text].QueryRowContext(ctx, each.value), each); err != nil {
			return err
		}
	}
	return nil
}

// copy copies in only: lib/pq cannot copy out.
func (s pqSteps) copy(ctx context.Context, tag int) error {
	tx, err := s.pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing once committed
	into, err := tx.PrepareContext(ctx, pq.CopyIn("copied", "tag", "n", "note"))
	if err != nil {
		return err
	}
	for number := range rows {
		if _, err := into.ExecContext(ctx, copyRow(tag, number)...); err != nil {
			return err
		}
	}
	if _, err := into.ExecContext(ctx); err != nil {
		return err
	}
	if err := into.Close(); err != nil {
		return err
	}
	var out string
	text := "SELECT string_agg(format(E'%s\\t%s\\t%s\\n', tag, n, note), '' ORDER BY n)" +
		" FROM copied WHERE tag = $1"
	if err := tx.QueryRowContext(ctx, text, tag).Scan(&out); err != nil {
		return err
	}
	return errors.Join(expect(out, copyText(tag)), tx.Commit())
}

func pqKeep(ctx context.Context, on rower, tag int, part string) error {
	_, err := on.ExecContext(ctx, "INSERT INTO kept VALUES ($1, $2)", tag, part)
	return err
}

func (s pqSteps) block(ctx context.Context, work func(tx *sql.Tx) error) error {
	tx, err := s.pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	return work(tx)
}

func pqRun(ctx context.Context, on rower, text string) func() error {
	return func() error {
		_, err := on.ExecContext(ctx, text)
		return err
	}
}

func (s pqSteps) transaction(ctx context.Context, tag int) error {
	return first(
		func() error {
			return s.block(ctx, func(tx *sql.Tx) error {
				return errors.Join(pqKeep(ctx, tx, tag, "committed"), tx.Commit())
			})
		},
		func() error {
			return s.block(ctx, func(tx *sql.Tx) error {
				return errors.Join(pqKeep(ctx, tx, tag, "rolled back"), tx.Rollback())
			})
		},
		func() error {
			return s.block(ctx, func(tx *sql.Tx) error {
				return first(
					func() error { return pqKeep(ctx, tx, tag, "outer") },
					pqRun(ctx, tx, "SAVEPOINT here"),
					func() error { return pqKeep(ctx, tx, tag, "inner") },
					pqRun(ctx, tx, "ROLLBACK TO SAVEPOINT here"),
					tx.Commit,
				)
			})
		},
		func() error {
			var parts pq.StringArray
			text := "SELECT array_agg(part ORDER BY part) FROM kept WHERE tag = $1"
			err := s.pool.QueryRowContext(ctx, text, tag).Scan(&parts)
			return errors.Join(err, expect(strings.Join(parts, " "), kept))
		},
	)
}

func (s pqSteps) fail(ctx context.Context, tag int) error {
	divide := func(on rower) error {
		_, err := on.ExecContext(ctx, "SELECT 1 / $1::int", 0)
		return expectState(err, divisionError)
	}
	connection, err := s.pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer connection.Close()
	return first(
		func() error { return divide(connection) },
		func() error { return pqValue(ctx, connection, tag) },
		func() error {
			tx, err := connection.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			return first(
				func() error { return pqValue(ctx, tx, tag) },
				func() error { return divide(tx) },
				func() error { return expectState(pqValue(ctx, tx, tag), failedBlock) },
				tx.Rollback,
			)
		},
		func() error { return pqValue(ctx, connection, tag) },
	)
}

// cancel lets a context end, upon which lib/pq sends a cancel request.
func (s pqSteps) cancel(ctx context.Context, tag int) error {
	begun := time.Now()
	limited, stop := context.WithTimeout(ctx, cutAfter)
	defer stop()
	_, err := s.pool.ExecContext(limited, sleep)
	return first(
		func() error { return expectCut(err, begun) },
		func() error { return pqValue(ctx, s.pool, tag) },
	)
}

func (s pqSteps) beside(ctx context.Context, tag int) error {
	for range besideTurns {
		if err := pqValue(ctx, s.pool, tag); err != nil {
			return err
		}
	}
	return nil
}
