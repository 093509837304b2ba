//! The contract of `../README.md` for tokio-postgres: settings, units of work, the report.
//!
//! It knows nothing of the driver but its error type. Next on the path: `steps.rs`.

mod steps;

use std::env;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

const STEPS: [&str; 7] =
    ["connect", "prepared", "pipeline", "copy", "transaction", "error", "cancel"];
const ERRORS_SHOWN: usize = 5;
const SLEEPER_EVERY: i32 = 5;
const ROWS: i32 = 100;
const STEP_WITHIN: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error>;

/// What to connect to in one step.
struct Where {
    host: String,
    port: u16,
    user: String,
    password: String,
    database: String,
    clients: usize,
    rounds: i32,
}

impl Where {
    fn of(step: &str) -> Result<Self, Failure> {
        Ok(Self {
            host: env::var("PGHOST")?,
            port: env::var("PGPORT")?.parse()?,
            user: env::var("PGUSER")?,
            password: env::var("PGPASSWORD")?,
            database: format!("{}_{step}", env::var("PGDATABASE")?),
            clients: env::var("DRIVER_CLIENTS").map_or(Ok(50), |n| n.parse())?,
            rounds: env::var("DRIVER_ROUNDS").map_or(Ok(2), |n| n.parse())?,
        })
    }
}

/// Fails unless two results are the same by value.
fn expect<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(
    got: T,
    wanted: U,
) -> Result<(), Failure> {
    if got == wanted {
        return Ok(());
    }
    let text = format!("wrong result: {got:?} instead of {wanted:?}");
    Err(text.chars().take(300).collect::<String>().into())
}

/// The rows of the step `copy` in COPY's text format.
fn copy_text(tag: i32) -> String {
    (0..ROWS).map(|n| format!("{tag}\t{n}\tnote {tag} {n}\n")).collect()
}

/// Runs one client's rounds of a step; gives what failed, of each round.
async fn client(step: &str, opened: &steps::Opened, number: i32, rounds: i32) -> Vec<String> {
    let mut failed = Vec::new();
    for round in 0..rounds {
        let tag = number * 1000 + round;
        let done = match step {
            "connect" => opened.connect(tag).await,
            "prepared" => opened.prepared(tag).await,
            "pipeline" => opened.pipeline(tag).await,
            "copy" => opened.copy(tag).await,
            "transaction" => opened.transaction(tag).await,
            "error" => opened.error(tag).await,
            _ if number % SLEEPER_EVERY == 0 => opened.cancel(tag).await,
            _ => opened.beside(tag).await,
        };
        failed.extend(done.err().map(|error| steps::told(&*error)));
    }
    failed
}

async fn run(step: &str) -> Result<(), Failure> {
    let place = Where::of(step)?;
    let (clients, rounds) = (i32::try_from(place.clients)?, place.rounds);
    let begun = Instant::now();
    let opened = steps::Opened::new(place)?;
    let all = join_all((0..clients).map(|number| client(step, &opened, number, rounds)));
    let failed = tokio::time::timeout(STEP_WITHIN, all).await?.concat();
    let done = clients * rounds - i32::try_from(failed.len())?;
    let mut shown: Vec<String> = failed.iter().take(ERRORS_SHOWN).cloned().collect();
    if failed.len() > shown.len() {
        shown.push(format!("and {} more", failed.len() - shown.len()));
    }
    let seconds = (begun.elapsed().as_secs_f64() * 100.0).round() / 100.0;
    println!("{}", json!({"step": step, "done": done, "errors": shown, "seconds": seconds}));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let lock = include_str!("../Cargo.lock");
    println!(
        "{}",
        json!({
            "driver": "tokio-postgres",
            "version": version(lock, "tokio-postgres"),
            "pool": format!("deadpool-postgres {}", version(lock, "deadpool-postgres")),
        })
    );
    for step in STEPS {
        run(step).await?;
    }
    Ok(())
}

/// The version of a package that the lock file names.
fn version<'a>(lock: &'a str, package: &str) -> &'a str {
    let head = format!("name = \"{package}\"\nversion = \"");
    lock.split_once(&head).and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown")
}
