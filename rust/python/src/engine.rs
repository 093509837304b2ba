//! The class `Engine`: a handle to the engine thread of this worker.
//!
//! Every method returns at once, but `stats`, which waits up to a quarter of a second for the
//! thread. The interpreter lock is released wherever the engine's own locks are taken. Next:
//! `events.rs`, and the crate `engine` for what runs behind it.

use std::os::fd::{AsRawFd, RawFd};

use auth::ScramKeys;
use engine::{Handle, Listener, Settings};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::parse_config;
use crate::errors::value_error;
use crate::events::{Record, to_record};

/// One engine; make and start it after the last fork.
#[pyclass(frozen, module = "pyproxy._core")]
pub(crate) struct Engine {
    handle: Handle,
}

#[pymethods]
impl Engine {
    /// Builds an engine of a configuration (JSON) and listening sockets, which are duplicated.
    ///
    /// Raises ValueError for a configuration that does not fit, OSError for a descriptor that is no
    /// listening socket or if the process is out of descriptors.
    #[new]
    #[pyo3(signature = (config, listeners, /))]
    fn new(config: &str, listeners: Vec<(RawFd, bool)>) -> PyResult<Self> {
        let config = parse_config(config).map_err(value_error)?;
        let listeners = listeners
            .into_iter()
            .map(|(fd, unix)| Listener::duplicate(fd, unix))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { handle: Handle::new(Settings { listeners, config })? })
    }

    /// Starts the thread. A second call does nothing.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.handle.start())?)
    }

    /// The descriptor that is readable while events wait.
    #[getter]
    fn event_fd(&self) -> RawFd {
        self.handle.event_fd().as_raw_fd()
    }

    /// Takes up to `most` events out, as (kind, fields).
    #[pyo3(signature = (most, /))]
    fn drain<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Vec<Record<'py>>> {
        let events = py.detach(|| self.handle.drain(most));
        events.into_iter().map(|event| to_record(py, event)).collect()
    }

    /// Takes no more clients; each ends at its next idle point, and then the thread.
    fn stop(&self) -> PyResult<()> {
        Ok(self.handle.stop()?)
    }

    /// Ends every client, and then the thread.
    fn stop_now(&self) -> PyResult<()> {
        Ok(self.handle.stop_now()?)
    }

    /// Answers `server_keys_needed` with SaltedPassword (32 bytes) of RFC 5802.
    #[pyo3(signature = (credential, salt, iterations, salted_password, /))]
    fn set_server_keys(
        &self,
        credential: u32,
        salt: Vec<u8>,
        iterations: u32,
        salted_password: &[u8],
    ) -> PyResult<()> {
        let salted: [u8; 32] = salted_password
            .try_into()
            .map_err(|_| value_error("a salted password has 32 bytes"))?;
        let keys = ScramKeys::from_salted_password(salted);
        Ok(self.handle.set_server_keys(credential, salt, iterations, keys)?)
    }

    /// Counters by name; waits up to a quarter of a second for fresh ones.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let rows = py.detach(|| self.handle.stats());
        let stats = PyDict::new(py);
        for (name, value) in rows {
            stats.set_item(name, value)?;
        }
        Ok(stats)
    }

    /// A number that grows at least once a second while the loop is alive.
    fn heartbeat(&self) -> u64 {
        self.handle.heartbeat()
    }

    /// Whether the thread has ended.
    fn finished(&self) -> bool {
        self.handle.is_finished()
    }
}
