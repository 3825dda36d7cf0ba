//! Weight files: `cosmos_fast_core::weights`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cosmos_fast_core::Error;
use cosmos_fast_core::weights::{
    self, Entry, Kind, Options, Reader, TensorInfo, Transfer, open_regular,
};
use pyo3::prelude::*;

use crate::errors::to_python;

/// (name, dtype, shape, start, end)
type TensorOut = (String, &'static str, Vec<u64>, u64, u64);
/// (offset, bytes, address, round to bfloat16, gate)
type TransferIn = (u64, u64, usize, bool, usize);

/// Tensors and metadata of a safetensors file.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "made from a Python path")]
pub fn safetensors_header(
    py: Python<'_>,
    path: PathBuf,
) -> PyResult<(Vec<TensorOut>, BTreeMap<String, String>)> {
    let read = py.detach(|| weights::read_header(&open_regular(&path)?));
    let header = read.map_err(|error| named(py, &path, error))?;
    let tuple =
        |tensor: TensorInfo| (tensor.name, tensor.dtype, tensor.shape, tensor.start, tensor.end);
    Ok((header.tensors.into_iter().map(tuple).collect(), header.metadata))
}

/// Entries of a `.pt` archive.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "made from a Python path")]
pub fn archive_directory(py: Python<'_>, path: PathBuf) -> PyResult<Vec<(String, u64, u64)>> {
    let read = py.detach(|| weights::read_directory(&open_regular(&path)?));
    let entries = read.map_err(|error| named(py, &path, error))?;
    let tuple = |Entry { name, start, end }| (name, start, end);
    Ok(entries.into_iter().map(tuple).collect())
}

/// Stretches of a file on their way to addresses.
#[pyclass(frozen)]
pub struct WeightReader {
    path: PathBuf,
    reader: Reader,
    /// What owns the memory behind the addresses.
    _owner: Py<PyAny>,
}

#[pymethods]
impl WeightReader {
    #[new]
    #[pyo3(signature = (path, transfers, owner, *, threads, piece_bytes, direct = false))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        transfers: Vec<TransferIn>,
        owner: Py<PyAny>,
        threads: usize,
        piece_bytes: usize,
        direct: bool,
    ) -> PyResult<Self> {
        let options = Options { threads, piece_bytes, direct };
        let transfers = transfers.into_iter().map(transfer).collect();
        let started = py.detach(|| {
            // SAFETY: `owner` holds the memory for as long as this object lives, which ends the
            // reader first; that its addresses and gates are right is Python's promise, as with
            // any tensor's `data_ptr()`.
            unsafe { Reader::start(&path, transfers, options) }
        });
        let reader = started.map_err(|error| named(py, &path, error))?;
        Ok(Self { path, reader, _owner: owner })
    }

    /// Waits until a transfer has landed.
    fn wait(&self, py: Python<'_>, transfer: usize) -> PyResult<()> {
        let waited = py.detach(|| self.reader.wait(transfer));
        waited.map_err(|error| named(py, &self.path, error))
    }

    /// The memory of the first `transfers` may be written to again.
    fn release(&self, transfers: usize) {
        self.reader.release(transfers);
    }

    /// Ends what is under way; no byte is written afterwards.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.reader.stop());
    }

    /// Whether bytes are read past the page cache.
    #[getter]
    fn direct(&self) -> bool {
        self.reader.is_direct()
    }
}

fn transfer((offset, bytes, target, round, gate): TransferIn) -> Transfer {
    let kind = if round { Kind::Float32ToBfloat16 } else { Kind::Copy };
    Transfer { offset, bytes, target, kind, gate }
}

/// An error with the file's name in front, unless it has it already.
fn named(py: Python<'_>, path: &std::path::Path, error: Error) -> PyErr {
    let path = path.display().to_string();
    match error {
        Error::Checkpoint(why) if !why.starts_with(&path) => {
            to_python(py, &Error::Checkpoint(format!("{path}: {why}")))
        }
        other => to_python(py, &other),
    }
}
