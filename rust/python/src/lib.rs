//! `pyproxy._core`: the engine, the shared page and the password functions, for Python.
//!
//! Thin by intent: arguments become Rust values here, results become Python objects, errors become
//! exceptions (`errors.rs`, the one place). No protocol logic, and the engine thread never needs
//! the interpreter. `pyproxy/_core.pyi` describes the module to type checkers. Next: `engine.rs`.

mod config;
mod engine;
mod errors;
mod events;
mod page;

use std::os::fd::RawFd;

use auth::Verifier;
use pyo3::prelude::*;

use crate::errors::value_error;

/// The engine of pyproxy.
#[pymodule(gil_used = true)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::engine::Engine;
    #[pymodule_export]
    use super::page::Page;
    #[pymodule_export]
    use super::{
        build_profile, check_verifier, io_uring_missing, make_verifier, md5_inner, set_panic_file,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Bytes of a salt that `auth::Verifier::parse` takes back.
const SALT_BYTES_MAX: usize = 1024;
/// The largest iteration count that PostgreSQL's own integer holds.
const ITERATIONS_MAX: u32 = i32::MAX as u32;

/// Makes a SCRAM-SHA-256 verifier (RFC 5803) of a password that SASLprep has been through.
#[pyfunction]
#[pyo3(signature = (password, salt, iterations, /))]
fn make_verifier(
    py: Python<'_>,
    password: &[u8],
    salt: &[u8],
    iterations: u32,
) -> PyResult<String> {
    if salt.is_empty() || salt.len() > SALT_BYTES_MAX {
        return Err(value_error("a salt has 1 to 1024 bytes"));
    }
    if !(1..=ITERATIONS_MAX).contains(&iterations) {
        return Err(value_error("iterations are a number from 1 to 2147483647"));
    }
    Ok(py.detach(|| Verifier::from_password(password, salt, iterations).to_string()))
}

/// Raises ValueError if the text is no SCRAM-SHA-256 verifier.
#[pyfunction]
#[pyo3(signature = (text, /))]
fn check_verifier(text: &str) -> PyResult<()> {
    Verifier::parse(text).map(drop).map_err(value_error)
}

/// md5(password ‖ user) as 32 hex digits: what PostgreSQL stores behind `md5`.
#[pyfunction]
#[pyo3(signature = (password, user, /))]
fn md5_inner(password: &[u8], user: &[u8]) -> String {
    auth::md5::inner(password, user).into_iter().map(char::from).collect()
}

/// Has the message of a panic written to this descriptor, too, which is duplicated.
///
/// Raises OSError if it is not open, or if the process is out of descriptors.
#[pyfunction]
#[pyo3(signature = (fd, /))]
fn set_panic_file(fd: RawFd) -> PyResult<()> {
    Ok(::engine::set_panic_file(fd)?)
}

/// What io_uring needs and this process cannot have here; None if nothing is missing.
///
/// Takes a moment: it makes a ring and ends it.
#[pyfunction]
fn io_uring_missing(py: Python<'_>) -> Option<String> {
    py.detach(|| ::engine::probe().err())
}

/// How the extension was compiled: `release` or `debug`.
#[pyfunction]
const fn build_profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}
