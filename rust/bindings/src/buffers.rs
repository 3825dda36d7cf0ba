//! Arrays of the caller as slices, without copying.

use cosmos_fast_core::Error;
use cosmos_fast_core::pack::Shape;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

use crate::errors::to_python;

/// A C-contiguous array, held until this value goes.
pub struct Array<T: Element>(PyBuffer<T>);

// SAFETY: the exporter keeps memory and description unchanged until the buffer is released, which
// happens with the interpreter attached; other threads only read its pointer and lengths.
unsafe impl<T: Element> Sync for Array<T> {}

impl<T: Element> Array<T> {
    /// Takes the buffer of `object`; `name` is what errors call it.
    pub fn new(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Self> {
        let buffer = PyBuffer::<T>::get(object)?;
        if buffer.is_c_contiguous() {
            return Ok(Self(buffer));
        }
        let message = format!("{name} is not C-contiguous; pass a copy in C order");
        Err(to_python(object.py(), &Error::Argument(message)))
    }

    /// Frames, height and width of an array whose axes at `frames`, `frames + 1`, `frames + 2` are
    /// those.
    pub fn clip_shape(&self, py: Python<'_>, channels_first: bool) -> PyResult<Shape> {
        let shape = self.0.shape();
        match (shape, channels_first) {
            (&[frames, height, width, 3], false) | (&[3, frames, height, width], true) => {
                let shape = Shape { frames, height, width };
                shape.pixels().map_err(|error| to_python(py, &error))?;
                Ok(shape)
            }
            _ => {
                let expected = if channels_first { "(3, T, H, W)" } else { "(T, H, W, 3)" };
                let message = format!("an array of shape {shape:?} where {expected} is needed");
                Err(to_python(py, &Error::Argument(message)))
            }
        }
    }

    /// The values, to read.
    pub fn values(&self) -> &[T] {
        let length = self.0.item_count();
        if length == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous, aligned for T (checked by PyBuffer) and held by self.
        // The caller must not write to an array while it is being converted, as with NumPy itself.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast::<T>(), length) }
    }

    /// The values, to write.
    pub fn values_mut(&mut self, py: Python<'_>, name: &str) -> PyResult<&mut [T]> {
        if self.0.readonly() {
            let message = format!("{name} is read-only; pass an array that may be written");
            return Err(to_python(py, &Error::Argument(message)));
        }
        let length = self.0.item_count();
        if length == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `values`, and the exporter says that the memory may be written; the caller
        // must not use the array elsewhere while it is being filled, as with NumPy itself.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.buf_ptr().cast::<T>(), length) })
    }
}
