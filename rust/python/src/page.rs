//! The class `Page`: the memory that all processes of a service share.
//!
//! The supervisor makes it before its first fork; admin reads it; a worker's engine is made with
//! it. Nothing here waits. Next: the crate `ledger`.

use engine::{Backend, Page as SharedPage};
use ledger::{Ledger, Limit, SUPERVISOR, WORKERS_MAX, WorkerId};
use proxy_core::stats::Stats;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::value_error;

/// A budget's page; processes forked after its making share it.
#[pyclass(frozen, module = "pyproxy._core")]
pub(crate) struct Page {
    page: SharedPage,
    /// As the supervisor, which holds no permit.
    ledger: Ledger,
}

impl Page {
    /// The page as a worker, 0 to 63, uses it.
    pub(crate) fn ledger(&self, worker: WorkerId) -> PyResult<Ledger> {
        self.page.ledger(checked(worker)?).ok_or_else(no_page)
    }
}

fn no_page() -> PyErr {
    value_error("this is no page")
}

fn checked(worker: WorkerId) -> PyResult<WorkerId> {
    if usize::from(worker) < WORKERS_MAX { Ok(worker) } else { Err(value_error("worker: 0 to 63")) }
}

#[pymethods]
impl Page {
    /// Makes a page for at most `slots` server connections, at least 1.
    ///
    /// Raises ValueError for 0, OSError if the host is out of memory or descriptors.
    #[staticmethod]
    #[pyo3(signature = (slots, /))]
    fn create(slots: u32) -> PyResult<Self> {
        if slots == 0 {
            return Err(value_error("slots: at least 1"));
        }
        let page = SharedPage::create(slots)?;
        let ledger = page.ledger(SUPERVISOR).ok_or_else(no_page)?;
        Ok(Self { page, ledger })
    }

    /// Sets the limit of server connections: a number, or percent (1 to 100) of what the target
    /// allows; the other one is None.
    #[pyo3(signature = (connections, percent, /))]
    fn set_limit(&self, connections: Option<u32>, percent: Option<u8>) -> PyResult<()> {
        let limit = match (connections, percent) {
            (Some(number), None) if number >= 1 => Limit::Connections(number),
            (None, Some(percent)) if (1..=100).contains(&percent) => Limit::Percent(percent),
            _ => return Err(value_error("limit: at least 1 connection, or 1 to 100 percent")),
        };
        self.ledger.set_limit(limit);
        Ok(())
    }

    /// A worker's process has ended: what it held has no owner any more. Returns how many server
    /// connections that are; the other workers deal with them when they are poked.
    #[pyo3(signature = (worker, /))]
    fn bury(&self, worker: WorkerId) -> PyResult<u32> {
        Ok(self.ledger.bury(checked(worker)?))
    }

    /// A worker's state, gauges and counters by name.
    #[pyo3(signature = (worker, /))]
    fn worker<'py>(&self, py: Python<'py>, worker: WorkerId) -> PyResult<Bound<'py, PyDict>> {
        let view = self.ledger.worker_view(checked(worker)?);
        let fields = PyDict::new(py);
        for ((name, _), value) in Stats::default().rows().iter().zip(&view.stats) {
            fields.set_item(name, value)?;
        }
        // Where both have a figure, this one is the fresher.
        fields.set_item("alive", u64::from(view.alive))?;
        fields.set_item("accepting", u64::from(view.accepting))?;
        fields.set_item("incarnation", view.incarnation)?;
        fields.set_item("heartbeat", view.heartbeat)?;
        fields.set_item("clients", view.clients)?;
        fields.set_item("idle", view.idle)?;
        fields.set_item("waiting", view.waiting)?;
        fields.set_item("servers", view.servers)?;
        fields.set_item("paused_busy", view.paused_busy)?;
        fields.set_item("epoch", view.epoch)?;
        Ok(fields)
    }

    /// How a worker's engine waits for sockets, `epoll` or `io_uring`; None if none has run yet.
    #[pyo3(signature = (worker, /))]
    fn io(&self, worker: WorkerId) -> PyResult<Option<&'static str>> {
        let io = Backend::from_page(self.ledger.io(checked(worker)?));
        Ok(io.map(Backend::name))
    }

    /// How the server connections that are allowed are used, by name.
    fn budget<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let view = self.ledger.budget_view();
        let used = [view.connecting, view.held, view.transit, view.orphaned].iter().sum();
        let fields = PyDict::new(py);
        fields.set_item("allowed", view.allowed)?;
        fields.set_item("configured", view.configured)?;
        // Less than nothing for a while when the limit has fallen.
        fields.set_item("free", view.allowed.saturating_sub(used))?;
        fields.set_item("connecting", view.connecting)?;
        fields.set_item("held", view.held)?;
        fields.set_item("transit", view.transit)?;
        fields.set_item("orphaned", view.orphaned)?;
        fields.set_item("capacity", view.capacity)?;
        Ok(fields)
    }
}
