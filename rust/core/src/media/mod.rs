//! Pictures and videos through ffmpeg, as a supervised child process.
//!
//! `spawn` starts the process, `child` holds and ends it, `supervisor` moves bytes between it and
//! the rest in one poll loop on the thread of a `worker`, `ring` is the bounded queue between that
//! thread and the caller. [`FrameReader`], [`FrameWriter`] and [`Capture`] are the three uses.

mod capture;
mod child;
mod exif;
mod inspect;
mod pnm;
mod reader;
mod ring;
mod spawn;
mod supervisor;
mod tail;
mod worker;
mod writer;

pub use capture::Capture;
pub use child::{Limits, Program};
pub use inspect::{Inspection, Kind, inspect};
pub use pnm::{Bounds, Picture, Samples};
pub use reader::FrameReader;
pub use tail::Tail;
pub use writer::FrameWriter;

/// What came of waiting for a bounded time.
#[derive(Debug)]
pub enum Waited<T> {
    /// It is there.
    Done(T),
    /// Not yet; look after signals and wait again.
    NotYet,
}
