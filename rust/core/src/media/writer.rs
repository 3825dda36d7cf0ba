//! Frames into ffmpeg.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Waited;
use super::child::{Ends, Program};
use super::ring::{Closed, Ring};
use super::supervisor::{Feed, Offer, supervise};
use super::worker::Worker;
use crate::Result;

/// Encodes on a thread of its own, at most `ring` frames behind the caller, who waits where the
/// ring is full.
///
/// Dropping it stops ffmpeg and waits for its end.
pub struct FrameWriter {
    ring: Arc<Ring<Vec<u8>>>,
    frame_bytes: usize,
    /// Empty once stopped; under a lock, so that one thread may stop what another is waiting for.
    worker: Mutex<Option<Worker<Vec<u8>>>>,
}

impl FrameWriter {
    /// Starts `program`, which is to read raw frames of `frame_bytes` from its standard input.
    ///
    /// `patience` bounds the time for which ffmpeg may make us wait with any one frame, or with its
    /// end after the last; time in which it has nothing to do does not count.
    pub fn start(
        program: Program,
        frame_bytes: usize,
        ring: usize,
        patience: Duration,
    ) -> Result<Self> {
        let ends = Ends { feed: true, read: false };
        let ring = Ring::new(ring.max(1))?;
        let worker = Worker::start("cosmos-writer", program, ends, ring, move |child, ring| {
            let mut feed = Frames { ring, current: Vec::new(), sent: 0, closed: false };
            supervise(child, &mut feed, &mut (), &ring.wake, &|| ring.is_stopped(), patience)
        })?;
        Ok(Self { ring: Arc::clone(&worker.ring), frame_bytes, worker: Mutex::new(Some(worker)) })
    }

    /// Queues one frame, which `fill` writes into the memory it gets. Waits for room for at most
    /// `time`; `fill` has not been called where the answer is [`Waited::NotYet`].
    pub fn write(
        &self,
        time: Duration,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Waited<()>> {
        match self.ring.place(time)? {
            Waited::NotYet => Ok(Waited::NotYet),
            Waited::Done(memory) => {
                let mut frame = memory.unwrap_or_default();
                frame.resize(self.frame_bytes, 0);
                fill(&mut frame)?;
                self.ring.put(frame);
                Ok(Waited::Done(()))
            }
        }
    }

    /// Says that the last frame has been queued.
    pub fn close(&self) {
        self.ring.close();
    }

    /// Whether ffmpeg has taken everything and ended well; waits for at most `time`.
    pub fn wait(&self, time: Duration) -> Result<Waited<()>> {
        self.ring.end(time)
    }

    /// Ends ffmpeg now and waits for its end.
    pub fn stop(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(worker);
    }
}

struct Frames<'a> {
    ring: &'a Ring<Vec<u8>>,
    current: Vec<u8>,
    sent: usize,
    closed: bool,
}

impl Feed for Frames<'_> {
    fn offer(&mut self) -> Offer<'_> {
        if self.sent == self.current.len() && !self.closed {
            match self.ring.next() {
                Ok(Some(frame)) => {
                    self.ring.recycle(std::mem::replace(&mut self.current, frame));
                    self.sent = 0;
                }
                Ok(None) => return Offer::Later,
                Err(Closed) => self.closed = true,
            }
        }
        if self.sent < self.current.len() {
            Offer::Bytes(&self.current[self.sent..])
        } else if self.closed {
            Offer::End
        } else {
            Offer::Later
        }
    }

    fn sent(&mut self, count: usize) -> bool {
        self.sent += count;
        self.sent == self.current.len()
    }
}
