//! The work whose instructions are counted: a real engine, and its peers, in one thread.
//!
//! `bench WORK DRIVER TRANSACTIONS` plays so many transactions through the proxy and ends; all that
//! the proxy does happens inside `Turns::turn`, so that callgrind can be told to count that alone.
//! Who counts and judges: `bench/instructions.py`. Next on the path: `works.rs`.

mod peers;
mod stage;
mod works;

use std::error::Error;
use std::process::ExitCode;

use engine::Backend;

use crate::stage::Stage;
use crate::works::Work;

/// What went wrong, in one line.
pub(crate) type Failure = Box<dyn Error>;

/// The exit code for a driver that this machine does not have (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// The exit code for wrong arguments (`EX_USAGE` of this project).
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((work, backend, transactions)) = read(&arguments) else {
        eprintln!("usage: bench {} epoll|io_uring TRANSACTIONS", Work::NAMES.join("|"));
        return ExitCode::from(USAGE);
    };
    if backend == Backend::Uring {
        if let Err(why) = engine::probe() {
            eprintln!("{why}");
            return ExitCode::from(UNAVAILABLE);
        }
    }
    match Stage::new(backend).and_then(|mut stage| work.play(&mut stage, transactions)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn read(arguments: &[String]) -> Option<(Work, Backend, u32)> {
    let [work, backend, transactions] = arguments else { return None };
    Some((Work::from_name(work)?, Backend::from_name(backend)?, transactions.parse().ok()?))
}
