package main

// pgx with pgxpool, by the contract of ../README.md. Next on the path: pq.go.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

var pgxProgram = program{
	driver: "Go pgx", module: "github.com/jackc/pgx/v5", pool: "pgxpool", open: openPgx,
}

var errUndo = errors.New("undo")

// querier is what a pool, a connection and a transaction have in common.
type querier interface {
	Exec(ctx context.Context, text string, values ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, text string, values ...any) pgx.Row
}

type pgxSteps struct {
	pool    *pgxpool.Pool
	address string
}

func openPgx(ctx context.Context, step, address string, clients int) (opened, error) {
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return opened{}, err
	}
	config.MaxConns = int32(clients)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return opened{}, err
	}
	with := pgxSteps{pool, address}
	work := map[string]unit{
		"connect":     with.connect,
		"prepared":    with.prepared,
		"pipeline":    with.pipeline,
		"copy":        with.copy,
		"transaction": with.transaction,
		"error":       with.fail,
		"cancel":      with.cancel,
	}
	return opened{work: work[step], beside: with.beside, close: pool.Close}, nil
}

func pgxValue(ctx context.Context, on querier, tag int) error {
	var got int
	if err := on.QueryRow(ctx, "SELECT $1::int", tag).Scan(&got); err != nil {
		return err
	}
	return expect(got, tag)
}

func (s pgxSteps) connect(ctx context.Context, tag int) error {
	connection, err := pgx.Connect(ctx, s.address)
	if err != nil {
		return err
	}
	return errors.Join(pgxValue(ctx, connection, tag), connection.Close(ctx))
}

func (s pgxSteps) prepared(ctx context.Context, tag int) error {
	return s.pool.AcquireFunc(ctx, func(connection *pgxpool.Conn) error {
		for _, each := range preparedTurns(tag) {
			var value int
			var note string
			row := connection.QueryRow(ctx, each.text, each.value)
			if err := row.Scan(&value, &note); err != nil {
				return err
			}
			if err := expect(turn{each.text, value, note}, each); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s pgxSteps) pipeline(ctx context.Context, tag int) error {
	batch := &pgx.Batch{}
	for number := range statements {
		batch.Queue("SELECT $1::int", tag*100+number)
	}
	results := s.pool.SendBatch(ctx, batch)
	for number := range statements {
		var got int
		if err := results.QueryRow().Scan(&got); err != nil {
			return errors.Join(err, results.Close())
		}
		if err := expect(got, tag*100+number); err != nil {
			return errors.Join(err, results.Close())
		}
	}
	return results.Close()
}

func (s pgxSteps) copy(ctx context.Context, tag int) error {
	return s.pool.AcquireFunc(ctx, func(connection *pgxpool.Conn) error {
		source := pgx.CopyFromSlice(rows, func(number int) ([]any, error) {
			return copyRow(tag, number), nil
		})
		columns := []string{"tag", "n", "note"}
		if _, err := connection.CopyFrom(ctx, pgx.Identifier{"copied"}, columns, source); err != nil {
			return err
		}
		text := "COPY (SELECT * FROM copied WHERE tag = %d ORDER BY n) TO STDOUT"
		var out bytes.Buffer
		_, err := connection.Conn().PgConn().CopyTo(ctx, &out, fmt.Sprintf(text, tag))
		return errors.Join(err, expect(out.String(), copyText(tag)))
	})
}

func pgxKeep(ctx context.Context, on querier, tag int, part string) error {
	_, err := on.Exec(ctx, "INSERT INTO kept VALUES ($1, $2)", tag, part)
	return err
}

// undone runs a transaction or savepoint of `begin` with one row and takes it back.
func undone(ctx context.Context, begin interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}, tag int, part string) error {
	err := pgx.BeginFunc(ctx, begin, func(tx pgx.Tx) error {
		return errors.Join(pgxKeep(ctx, tx, tag, part), errUndo)
	})
	if err != nil && err.Error() == errUndo.Error() {
		return nil
	}
	return fmt.Errorf("not undone: %w", err)
}

func (s pgxSteps) transaction(ctx context.Context, tag int) error {
	return first(
		func() error {
			return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				return pgxKeep(ctx, tx, tag, "committed")
			})
		},
		func() error { return undone(ctx, s.pool, tag, "rolled back") },
		func() error {
			return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				return errors.Join(
					pgxKeep(ctx, tx, tag, "outer"),
					undone(ctx, tx, tag, "inner"),
				)
			})
		},
		func() error {
			found, err := s.pool.Query(ctx, "SELECT part FROM kept WHERE tag = $1 ORDER BY part", tag)
			if err != nil {
				return err
			}
			parts, err := pgx.CollectRows(found, pgx.RowTo[string])
			return errors.Join(err, expect(strings.Join(parts, " "), kept))
		},
	)
}

func (s pgxSteps) fail(ctx context.Context, tag int) error {
	divide := func(on querier) error {
		_, err := on.Exec(ctx, "SELECT 1 / $1::int", 0)
		return expectState(err, divisionError)
	}
	return s.pool.AcquireFunc(ctx, func(connection *pgxpool.Conn) error {
		return first(
			func() error { return divide(connection) },
			func() error { return pgxValue(ctx, connection, tag) },
			func() error {
				tx, err := connection.Begin(ctx)
				if err != nil {
					return err
				}
				return first(
					func() error { return pgxValue(ctx, tx, tag) },
					func() error { return divide(tx) },
					func() error { return expectState(pgxValue(ctx, tx, tag), failedBlock) },
					func() error { return tx.Rollback(ctx) },
				)
			},
			func() error { return pgxValue(ctx, connection, tag) },
		)
	})
}

// cancel lets a context end: pgx cancels the statement and gives up the connection, not the pool.
func (s pgxSteps) cancel(ctx context.Context, tag int) error {
	begun := time.Now()
	limited, stop := context.WithTimeout(ctx, cutAfter)
	defer stop()
	_, err := s.pool.Exec(limited, sleep)
	return first(
		func() error { return expectCut(err, begun) },
		func() error { return pgxValue(ctx, s.pool, tag) },
	)
}

func (s pgxSteps) beside(ctx context.Context, tag int) error {
	for range besideTurns {
		if err := pgxValue(ctx, s.pool, tag); err != nil {
			return err
		}
	}
	return nil
}
