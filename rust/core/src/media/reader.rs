//! Pictures out of ffmpeg.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Waited;
use super::child::{Child, Ends, Program};
use super::pnm::{Assembler, Bounds, Picture};
use super::ring::Ring;
use super::supervisor::{Read, Sink, supervise};
use crate::{Error, Result};

/// Decodes on a thread of its own, at most `ring` pictures ahead of the caller.
///
/// Dropping it stops ffmpeg and waits for its end.
pub struct FrameReader {
    ring: Arc<Ring<Picture>>,
    thread: Option<JoinHandle<()>>,
}

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
        let ring = Arc::new(Ring::new(ring.max(1))?);
        let theirs = Arc::clone(&ring);
        let thread = std::thread::Builder::new()
            .name("cosmos-reader".into())
            .spawn(move || {
                let mut sink = Pictures { ring: &theirs, assembler: Assembler::new(bounds) };
                let ends = Ends { feed: false, read: true };
                let how = Child::start(program, ends).and_then(|child| {
                    let stopped = || theirs.is_stopped();
                    supervise(child, &mut (), &mut sink, &theirs.wake, &stopped, patience)
                });
                theirs.finish(how);
            })
            .map_err(Error::system("a thread could not be started"))?;
        Ok(Self { ring, thread: Some(thread) })
    }

    /// The next picture, `None` after the last; waits for at most `time`.
    pub fn next(&self, time: Duration) -> Result<Waited<Option<Picture>>> {
        self.ring.take(time)
    }

    /// Gives the memory of a picture back, for another one.
    pub fn recycle(&self, picture: Picture) {
        self.ring.recycle(picture);
    }
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        self.ring.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in that thread has been reported by its hook.
            let _ = thread.join();
        }
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
