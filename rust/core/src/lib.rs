//! The part of cosmos-fast that moves bytes.
//!
//! `media` runs ffmpeg as a supervised child process, `pack` converts and resizes pixels in memory
//! that the caller owns. `plan` decides where every weight is at every moment, `pool` places them,
//! `weights` reads them from files that nobody vouches for. `journal` remembers what a job has
//! done, whatever ends it. Nothing here knows of Python; `rust/bindings` makes it a module.

#[cfg(not(target_os = "linux"))]
compile_error!("child supervision uses prctl, pidfd and /proc: cosmos-fast runs on Linux");

pub mod error;
pub mod journal;
pub mod media;
pub mod pack;
pub mod plan;
pub mod pool;
pub mod weights;

pub use error::{Error, Result};
