//! Pixels: `cosmos_fast_core::pack`.

use cosmos_fast_core::pack::{self, Fit, Shape, Windows, bf16_table, f32_table};
use cosmos_fast_core::{Error, Result};
use half::bf16;
use pyo3::prelude::*;

use crate::buffers::Array;
use crate::errors::to_python;

/// Pictures (T, H, W, 3) uint8 to (3, T, H, W) float32 or bfloat16 (as uint16 bits) in [-1, 1].
#[pyfunction]
pub fn normalize(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let source = Array::<u8>::new(source, "source")?;
    let shape = source.clip_shape(py, false)?;
    let done = if let Ok(mut target) = Array::<f32>::new(target, "target") {
        let values = target.values_mut(py, "target")?;
        py.detach(|| pack::normalize(source.values(), values, shape, &f32_table()))
    } else {
        let mut target = Array::<u16>::new(target, "target")?;
        let values = target.values_mut(py, "target")?;
        let bits = bf16_table().map(bf16::to_bits);
        py.detach(|| pack::normalize(source.values(), values, shape, &bits))
    };
    done.map_err(|error| to_python(py, &error))
}
/// Values (3, T, H, W) float32 or bfloat16 (as uint16 bits) in [-1, 1] to (T, H, W, 3) uint8.
#[pyfunction]
pub fn denormalize(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut target = Array::<u8>::new(target, "target")?;
    let shape = target.clip_shape(py, false)?;
    let bytes = target.values_mut(py, "target")?;
    let done = if let Ok(source) = Array::<f32>::new(source, "source") {
        py.detach(|| pack::denormalize(source.values(), bytes, shape))
    } else {
        let source = Array::<u16>::new(source, "source")?;
        let halves = as_bf16(source.values());
        py.detach(|| pack::denormalize(halves, bytes, shape))
    };
    done.map_err(|error| to_python(py, &error))
}
fn as_bf16(bits: &[u16]) -> &[bf16] {
    use half::slice::HalfBitsSliceExt;
    bits.reinterpret_cast()
}

/// Pictures (T, h, w, 3) uint8 brought to (T, H, W, 3).
#[pyfunction]
#[pyo3(signature = (source, target, *, fit))]
pub fn resize(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    fit: &str,
) -> PyResult<()> {
    let how = fit_named(fit).map_err(|error| to_python(py, &error))?;
    let source = Array::<u8>::new(source, "source")?;
    let mut target = Array::<u8>::new(target, "target")?;
    let shape = source.clip_shape(py, false)?;
    let Shape { height, width, .. } = target.clip_shape(py, false)?;
    let bytes = target.values_mut(py, "target")?;
    py.detach(|| pack::fit(source.values(), shape, bytes, (height, width), how))
        .map_err(|error| to_python(py, &error))
}

/// First inputs, terms with two roundings, and weights of each position of an axis.
type Sums = (Vec<u32>, Vec<u32>, Vec<f32>);

/// What `resize` sums from (h, w) to (H, W): of the columns, and then of the rows.
#[pyfunction]
#[pyo3(signature = (source, target, *, fit))]
pub fn resize_windows(
    py: Python<'_>,
    source: (usize, usize),
    target: (usize, usize),
    fit: &str,
) -> PyResult<(Sums, Sums)> {
    let how = fit_named(fit).map_err(|error| to_python(py, &error))?;
    let (columns, rows) =
        py.detach(|| pack::windows(source, target, how)).map_err(|error| to_python(py, &error))?;
    let sums = |one: Windows| (one.starts, one.unfused, one.weights);
    Ok((sums(columns), sums(rows)))
}

/// The fit that Python calls `name`.
pub fn fit_named(name: &str) -> Result<Fit> {
    match name {
        "cover" => Ok(Fit::Cover),
        "stretch" => Ok(Fit::Stretch),
        _ => Err(Error::argument(format!("fit = {name:?}: \"cover\" or \"stretch\""))),
    }
}
