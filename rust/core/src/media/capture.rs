//! Short text out of ffmpeg.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::{read, retry_on_intr};

use super::Waited;
use super::child::{Ends, Program};
use super::ring::Ring;
use super::supervisor::{Read, Sink, supervise};
use super::worker::Worker;
use crate::{Error, Result};

/// Runs a program for what it prints. Dropping it stops the program.
pub struct Capture(Worker<Vec<u8>>);

impl Capture {
    /// Starts `program`; more than `most` bytes of output are an error.
    pub fn start(program: Program, most: usize, patience: Duration) -> Result<Self> {
        let ends = Ends { feed: false, read: true };
        Worker::start("cosmos-capture", program, ends, Ring::new(1)?, move |child, ring| {
            let mut sink = Text { bytes: Vec::new(), most };
            supervise(child, &mut (), &mut sink, &ring.wake, &|| ring.is_stopped(), patience)?;
            ring.give(sink.bytes);
            Ok(())
        })
        .map(Self)
    }

    /// What it printed, once it has ended; waits for at most `time`.
    pub fn wait(&self, time: Duration) -> Result<Waited<Vec<u8>>> {
        Ok(match self.0.ring.take(time)? {
            Waited::Done(text) => Waited::Done(text.unwrap_or_default()),
            Waited::NotYet => Waited::NotYet,
        })
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

    fn end(&mut self, _said: &str) -> Result<()> {
        Ok(())
    }
}
