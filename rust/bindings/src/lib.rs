//! `cosmos_fast._core`: the Rust core as a Python module.

mod buffers;
mod errors;
mod journal;
mod media;
mod pack;
mod plan;
mod weights;

/// The Rust core of cosmos-fast.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use crate::media::{Decoder, Encoder, ProcessLimits, capture, inspect};

    #[pymodule_export]
    use crate::journal::Journal;
    #[pymodule_export]
    use crate::pack::{denormalize, normalize, resize, resize_windows};
    #[pymodule_export]
    use crate::plan::{MemoryPlan, plan_memory, smallest_memory};
    #[pymodule_export]
    use crate::weights::{WeightReader, archive_directory, safetensors_header};

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "a Python name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
