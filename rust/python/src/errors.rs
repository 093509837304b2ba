//! The one place where Rust's errors become Python's exceptions.
//!
//! A value that the caller chose badly is a `ValueError`; what the system refused is an `OSError`
//! of the matching kind, which pyo3 makes of `io::Error` itself. There is no third kind.

use std::fmt::Display;

use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

/// The caller's fault; `why` never shows a secret.
pub(crate) fn value_error(why: impl Display) -> PyErr {
    PyValueError::new_err(why.to_string())
}
