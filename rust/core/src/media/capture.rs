//! Short text out of ffmpeg.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::{read, retry_on_intr};

use super::Waited;
use super::child::{Child, Ends, Program};
use super::ring::Ring;
use super::supervisor::{Read, Sink, supervise};
use crate::{Error, Result};

/// Runs a program for what it prints. Dropping it stops the program.
pub struct Capture {
    ring: Arc<Ring<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts `program`; more than `most` bytes of output are an error.
    pub fn start(program: Program, most: usize, patience: Duration) -> Result<Self> {
        let ring = Arc::new(Ring::new(1)?);
        let theirs = Arc::clone(&ring);
        let thread = std::thread::Builder::new()
            .name("cosmos-capture".into())
            .spawn(move || {
                let mut sink = Text { bytes: Vec::new(), most };
                let ends = Ends { feed: false, read: true };
                let how = Child::start(program, ends).and_then(|child| {
                    let stopped = || theirs.is_stopped();
                    supervise(child, &mut (), &mut sink, &theirs.wake, &stopped, patience)
                });
                if how.is_ok() {
                    theirs.give(sink.bytes);
                }
                theirs.finish(how);
            })
            .map_err(Error::system("a thread could not be started"))?;
        Ok(Self { ring, thread: Some(thread) })
    }

    /// What it printed, once it has ended; waits for at most `time`.
    pub fn wait(&self, time: Duration) -> Result<Waited<Vec<u8>>> {
        Ok(match self.ring.take(time)? {
            Waited::Done(text) => Waited::Done(text.unwrap_or_default()),
            Waited::NotYet => Waited::NotYet,
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ring.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in that thread has been reported by its hook.
            let _ = thread.join();
        }
    }
}

struct Text {
    bytes: Vec<u8>,
    most: usize,
}

impl Sink for Text {
    fn has_room(&self) -> bool {
        true
    }

    fn read(&mut self, from: BorrowedFd<'_>) -> Result<Read> {
        self.bytes.reserve(4096);
        let heard =
            Read::from_result(retry_on_intr(|| read(from, spare_capacity(&mut self.bytes))))?;
        if self.bytes.len() > self.most {
            return Err(Error::Stream(format!("ffmpeg wrote more than {} bytes", self.most)));
        }
        Ok(heard)
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
