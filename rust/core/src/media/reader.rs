//! Pictures out of ffmpeg.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Waited;
use super::child::{Ends, Program};
use super::pnm::{Assembler, Bounds, Picture};
use super::ring::Ring;
use super::supervisor::{Read, Sink, supervise};
use super::worker::Worker;
use crate::Result;

/// Decodes on a thread of its own, at most `ring` pictures ahead of the caller.
///
/// Dropping it stops ffmpeg and waits for its end.
pub struct FrameReader(Worker<Picture>);

impl FrameReader {
    /// Starts `program`, which is to write PPM or PAM pictures to its standard output.
    ///
    /// `patience` bounds the time for which ffmpeg may make us wait, all pictures together; time
    /// that the caller spends on its own does not count.
    pub fn start(
        program: Program,
        bounds: Bounds,
        ring: usize,
        patience: Duration,
    ) -> Result<Self> {
        let ends = Ends { feed: false, read: true };
        let ring = Ring::new(ring.max(1))?;
        Worker::start("cosmos-reader", program, ends, ring, move |child, ring| {
            let mut sink = Pictures { ring, assembler: Assembler::new(bounds) };
            supervise(child, &mut (), &mut sink, &ring.wake, &|| ring.is_stopped(), patience)
        })
        .map(Self)
    }

    /// The next picture, `None` after the last; waits for at most `time`.
    pub fn next(&self, time: Duration) -> Result<Waited<Option<Picture>>> {
        self.0.ring.take(time)
    }

    /// Gives the memory of a picture back, for another one.
    pub fn recycle(&self, picture: Picture) {
        self.0.ring.recycle(picture);
    }
}

struct Pictures<'a> {
    ring: &'a Ring<Picture>,
    assembler: Assembler,
}

impl Sink for Pictures<'_> {
    fn has_room(&self) -> bool {
        self.ring.has_room()
    }

    fn read(&mut self, from: BorrowedFd<'_>) -> Result<Read> {
        let ring = self.ring;
        let mut memory = || ring.spare().map(|picture| picture.data);
        self.assembler.read(from, &mut memory, &mut |picture| ring.give(picture))
    }

    fn end(&mut self) -> Result<()> {
        self.assembler.end()
    }
}
