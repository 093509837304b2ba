//! tokio-postgres with deadpool-postgres, each as it is by default.
//!
//! Not here: how often a step runs, and the report (`main.rs`).

use std::time::{Duration, Instant};

use deadpool_postgres::{Client, Manager, Pool};
use futures_util::future::try_join_all;
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, GenericClient, NoTls};

use crate::{Failure, Where, copy_text, expect};

const TURNS: i32 = 7;
const TEXTS: i32 = 3;
const STATEMENTS: i32 = 10;
const BESIDE: i32 = 5;
const CUT_AFTER: Duration = Duration::from_millis(300);
const CUT_AGAIN: Duration = Duration::from_secs(2);
const CUT_WITHIN: Duration = Duration::from_secs(10);

type Done = Result<(), Failure>;

/// The pool of one step.
pub(crate) struct Opened {
    config: Config,
    pool: Pool,
}

/// Tells an error with its causes: the driver's own text names none.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

async fn value(on: &impl GenericClient, tag: i32) -> Done {
    let row = on.query_one("SELECT $1::int", &[&tag]).await?;
    expect(row.get::<_, i32>(0), tag)
}

fn expect_state<T>(result: Result<T, tokio_postgres::Error>, wanted: &SqlState) -> Done {
    let state = result.err().and_then(|error| error.code().cloned());
    expect(state.as_ref(), Some(wanted))
}

async fn divide(on: &impl GenericClient) -> Done {
    expect_state(on.query_one("SELECT 1 / $1::int", &[&0_i32]).await, &SqlState::DIVISION_BY_ZERO)
}

async fn keep(on: &impl GenericClient, tag: i32, part: &str) -> Done {
    let written = on.execute("INSERT INTO kept VALUES ($1, $2)", &[&tag, &part]).await?;
    expect(written, 1)
}

impl Opened {
    pub(crate) fn new(place: Where) -> Result<Self, Failure> {
        let mut config = Config::new();
        config
            .host(&place.host)
            .port(place.port)
            .user(&place.user)
            .password(&place.password)
            .dbname(&place.database);
        let manager = Manager::new(config.clone(), NoTls);
        let pool = Pool::builder(manager).max_size(place.clients).build()?;
        Ok(Self { config, pool })
    }

    pub(crate) async fn connect(&self, tag: i32) -> Done {
        let (own, connection) = self.config.connect(NoTls).await?;
        let running = tokio::spawn(connection);
        value(&own, tag).await?;
        drop(own);
        Ok(running.await??)
    }

    /// Repeats statements: each call prepares its own named one, and the pool's cache keeps others.
    pub(crate) async fn prepared(&self, tag: i32) -> Done {
        let client = self.pool.get().await?;
        for turn in 0..TURNS {
            for text in 0..TEXTS {
                let sql = format!("SELECT $1::int, 'text {text}'");
                let parameter = tag * 100 + turn;
                let cached = client.prepare_cached(&sql).await?;
                for row in [
                    client.query_one(&sql, &[&parameter]).await?,
                    client.query_one(&cached, &[&parameter]).await?,
                ] {
                    expect(row.get::<_, i32>(0), parameter)?;
                    expect(row.get::<_, &str>(1), format!("text {text}"))?;
                }
            }
        }
        Ok(())
    }

    /// Futures that are polled together go out together.
    pub(crate) async fn pipeline(&self, tag: i32) -> Done {
        let client = self.pool.get().await?;
        let wanted: Vec<i32> = (0..STATEMENTS).map(|n| tag * 100 + n).collect();
        let parameters: Vec<[&(dyn ToSql + Sync); 1]> =
            wanted.iter().map(|n| [n as &(dyn ToSql + Sync)]).collect();
        let sent = parameters.iter().map(|own| client.query_one("SELECT $1::int", own));
        let rows = try_join_all(sent).await?;
        expect(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), wanted)
    }

    pub(crate) async fn copy(&self, tag: i32) -> Done {
        let client = self.pool.get().await?;
        let sink = client.copy_in("COPY copied FROM STDIN").await?;
        pin_mut!(sink);
        sink.send(std::io::Cursor::new(copy_text(tag).into_bytes())).await?;
        expect(sink.finish().await?, 100)?;
        let query = format!("SELECT tag, n, note FROM copied WHERE tag = {tag} ORDER BY n");
        let out = client.copy_out(&format!("COPY ({query}) TO STDOUT")).await?;
        let parts: Vec<_> = out.try_collect().await?;
        expect(String::from_utf8(parts.concat())?, copy_text(tag))
    }

    pub(crate) async fn transaction(&self, tag: i32) -> Done {
        let mut client = self.pool.get().await?;
        let committed = client.transaction().await?;
        keep(&*committed, tag, "committed").await?;
        committed.commit().await?;
        let undone = client.transaction().await?;
        keep(&*undone, tag, "rolled back").await?;
        undone.rollback().await?;
        let mut outer = client.transaction().await?;
        keep(&*outer, tag, "outer").await?;
        let inner = outer.savepoint("here").await?;
        keep(&*inner, tag, "inner").await?;
        inner.rollback().await?;
        outer.commit().await?;
        let query = "SELECT part FROM kept WHERE tag = $1 ORDER BY part";
        let rows = client.query(query, &[&tag]).await?;
        let parts: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        expect(parts, ["committed", "outer"])
    }

    pub(crate) async fn error(&self, tag: i32) -> Done {
        let mut client = self.pool.get().await?;
        divide(&**client).await?;
        value(&**client, tag).await?;
        let block = client.transaction().await?;
        value(&*block, tag).await?;
        divide(&*block).await?;
        let refused = block.query_one("SELECT $1::int", &[&tag]).await;
        expect_state(refused, &SqlState::IN_FAILED_SQL_TRANSACTION)?;
        block.rollback().await?;
        value(&**client, tag).await
    }

    /// Is cut off by the cancel token, which opens a connection for the request. It is used again
    /// if the statement goes on: a starved program may have sent the first before the statement.
    pub(crate) async fn cancel(&self, tag: i32) -> Done {
        let begun = Instant::now();
        let client: Client = self.pool.get().await?;
        let token = client.cancel_token();
        let sleep = client.simple_query("SELECT pg_sleep(30)");
        pin_mut!(sleep);
        let mut wait = CUT_AFTER;
        let slept = loop {
            match tokio::time::timeout(wait, &mut sleep).await {
                Ok(slept) => break slept,
                Err(_) => token.cancel_query(NoTls).await?,
            }
            wait = CUT_AGAIN;
        };
        expect_state(slept, &SqlState::QUERY_CANCELED)?;
        expect(begun.elapsed() < CUT_WITHIN, true)?;
        value(&**client, tag).await
    }

    pub(crate) async fn beside(&self, tag: i32) -> Done {
        for _ in 0..BESIDE {
            value(&**self.pool.get().await?, tag).await?;
        }
        Ok(())
    }
}
