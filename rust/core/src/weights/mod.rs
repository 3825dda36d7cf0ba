//! Weight files: what is where in them, and how it gets into memory.
//!
//! [`header`] reads a safetensors header and [`archive`] the directory of a `.pt` archive, both
//! from files that nobody vouches for: limits first, memory in proportion to what was read, one
//! refusal for everything that is not exactly as it should be, and no code run. [`read`] brings
//! the bytes to addresses of the caller's, by several threads, in order, announcing what landed.

pub mod archive;
pub mod header;
pub mod read;
mod source;
#[cfg(test)]
mod tests;

pub use archive::{Entry, read_directory};
pub use header::{Header, TensorInfo, read_header};
pub use read::{Kind, Options, Reader, Transfer};
pub use source::{Source, open_regular};
