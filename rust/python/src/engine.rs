//! The class `Engine`: a handle to the engine thread of this worker.
//!
//! Every method returns at once, but `stats`, which waits up to a quarter of a second for the
//! thread, and `derive_server_keys`, which computes. The interpreter lock is released wherever the
//! engine's own locks are taken. Next: `events.rs`, and the crate `engine` for what runs behind it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use engine::{Backend, Handle, Listener, Post, Setup, StartError, duplicate};
use proxy_core::config::Config;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::parse_config;
use crate::errors::value_error;
use crate::events::{Record, to_record};
use crate::page::Page;

fn parse(text: &[u8]) -> Result<Config, String> {
    parse_config(text).map_err(|error| error.to_string())
}

/// One engine; make and start it after the last fork.
#[pyclass(frozen, module = "pyproxy._core")]
pub(crate) struct Engine {
    handle: Handle,
}

#[pymethods]
impl Engine {
    /// Builds the engine of a worker (0 to 63); `incarnation` counts the starts of all workers of
    /// the service from 1.
    ///
    /// `io` is how it waits for sockets: `epoll` or `io_uring` (see `io_uring_missing`).
    /// `settings_fd` is a file in memory with the settings (JSON) of `epoch`; `listeners` are
    /// (id, descriptor, whether it is a Unix-domain socket); `inbox` is this worker's end of its
    /// pair and `outboxes` are the other ends of all workers' pairs, by number. All descriptors are
    /// duplicated.
    ///
    /// Raises ValueError for settings that do not fit or a wrong number, OSError for a descriptor
    /// of a wrong kind, if the process is out of descriptors, or if io_uring cannot be had.
    #[new]
    #[pyo3(signature = (
        page, worker, incarnation, io, epoch, settings_fd, listeners, inbox, outboxes, /
    ))]
    #[expect(clippy::too_many_arguments, reason = "each has a name on the Python side")]
    fn new(
        page: &Page,
        worker: u8,
        incarnation: u64,
        io: &str,
        epoch: u64,
        settings_fd: RawFd,
        listeners: Vec<(u32, RawFd, bool)>,
        inbox: RawFd,
        outboxes: Vec<RawFd>,
    ) -> PyResult<Self> {
        let listeners = listeners
            .into_iter()
            .map(|(id, fd, unix)| Ok((id, Listener::new(duplicate(fd)?, unix)?)))
            .collect::<io::Result<Vec<_>>>()?;
        let outboxes = outboxes.into_iter().map(duplicate).collect::<io::Result<Vec<_>>>()?;
        let setup = Setup {
            backend: Backend::from_name(io).ok_or_else(|| value_error("io: no such way"))?,
            listeners,
            ledger: page.ledger(worker)?,
            incarnation,
            epoch,
            settings: duplicate(settings_fd)?,
            parse,
            post: Post::new(duplicate(inbox)?, outboxes),
        };
        match Handle::new(setup) {
            Ok(handle) => Ok(Self { handle }),
            Err(StartError::Settings(why)) => Err(value_error(why)),
            Err(StartError::System(error)) => Err(error.into()),
        }
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

    /// Answers `server_keys_needed` with its fields: derives the keys of that credential's password
    /// and sends them to the engine. Takes a quarter of a millisecond for a thousand iterations,
    /// without the interpreter lock. Does nothing if the epoch is not in force any more.
    #[pyo3(signature = (credential, epoch, salt, iterations, /))]
    fn derive_server_keys(
        &self,
        py: Python<'_>,
        credential: u32,
        epoch: u64,
        salt: Vec<u8>,
        iterations: u32,
    ) -> PyResult<()> {
        py.detach(|| self.handle.derive_server_keys(credential, epoch, salt, iterations))?;
        Ok(())
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
