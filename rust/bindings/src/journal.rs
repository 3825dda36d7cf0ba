//! The journal of a job: `cosmos_fast_core::journal`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cosmos_fast_core::{Error, Result, journal};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::to_python;

/// A journal that several processes append to.
#[pyclass(frozen)]
pub struct Journal {
    journal: Mutex<Option<journal::Journal>>,
}

impl Journal {
    /// Runs `step` on the open journal, without the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        step: impl FnOnce(&mut journal::Journal) -> Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut held = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            match held.as_mut() {
                Some(journal) => step(journal),
                None => Err(Error::argument("the journal is closed")),
            }
        })
        .map_err(|error| to_python(py, &error))
    }
}

#[pymethods]
impl Journal {
    #[new]
    #[pyo3(signature = (path, *, fresh))]
    #[expect(clippy::needless_pass_by_value, reason = "made from a Python path")]
    fn new(py: Python<'_>, path: PathBuf, fresh: bool) -> PyResult<Self> {
        let opened = py.detach(|| journal::Journal::open(&path, fresh));
        let journal = opened.map_err(|error| to_python(py, &error))?;
        Ok(Self { journal: Mutex::new(Some(journal)) })
    }

    /// Records since the last call.
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let records = self.with(py, journal::Journal::read)?;
        Ok(records.iter().map(|record| PyBytes::new(py, record)).collect())
    }

    /// Appends records in one write.
    #[pyo3(signature = (records, *, sync = true))]
    #[expect(clippy::needless_pass_by_value, reason = "made from a Python list")]
    fn append(&self, py: Python<'_>, records: Vec<Vec<u8>>, sync: bool) -> PyResult<()> {
        self.with(py, |journal| journal.append(&records, sync))
    }

    /// Keeps other processes from appending.
    fn lock(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, journal::Journal::lock)
    }

    /// Ends `lock`.
    fn unlock(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, journal::Journal::unlock)
    }

    /// Takes an item, unless somebody else has it.
    fn lease(&self, py: Python<'_>, item: u64) -> PyResult<bool> {
        self.with(py, |journal| journal.lease(item))
    }

    /// Gives an item back.
    fn release(&self, py: Python<'_>, item: u64) -> PyResult<()> {
        self.with(py, |journal| journal.release(item))
    }

    /// Bytes that belonged to no whole record.
    #[getter]
    fn damaged(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |journal| Ok(journal.damaged()))
    }

    /// Closes the file and ends its leases.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.journal.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}
