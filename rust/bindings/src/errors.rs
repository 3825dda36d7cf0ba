//! The one place where errors of the core become exceptions.

use cosmos_fast_core::Error;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

fn exception<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || PyResult::Ok(py.import("cosmos_fast.errors")?.unbind()))?;
    module.bind(py).getattr(name)
}

/// The exception of `cosmos_fast.errors` that stands for `error`.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let name = match error {
        Error::Argument(_) => "InputError",
        Error::Memory(_) => "MemoryPlanError",
        Error::Checkpoint(_) => "CheckpointError",
        Error::Journal(_) => "CosmosFastError",
        Error::Cancelled => "Cancelled",
        Error::Spawn { .. }
        | Error::Exit { .. }
        | Error::Deadline { .. }
        | Error::Stream(_)
        | Error::File(_)
        | Error::System { .. } => "MediaError",
    };
    match exception(py, name).and_then(|kind| Ok(kind.cast_into::<PyType>()?)) {
        Ok(kind) => PyErr::from_type(kind, error.to_string()),
        Err(import_failed) => import_failed,
    }
}
