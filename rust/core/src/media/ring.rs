//! The bounded queue between the supervisor's thread and the caller.
//!
//! The supervisor's side never blocks: it lives in a poll loop and is woken through an eventfd.
//! The caller's side waits on a condition, for a bounded time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::Waited;
use crate::{Error, Result};

/// Wakes a poll loop from another thread.
pub(super) struct Wake(OwnedFd);

impl Wake {
    pub fn new() -> Result<Self> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(Error::system("an eventfd could not be opened"))
    }

    pub fn wake(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn clear(&self) {
        // Nothing to clear is fine.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct State<T> {
    queue: VecDeque<T>,
    /// Used items, kept for their memory.
    spare: Vec<T>,
    /// The caller will push no more.
    closed: bool,
    /// The caller wants the work to stop.
    stopped: bool,
    /// The supervisor has ended, and how.
    ended: Option<Result<()>>,
}

/// A queue of at most `capacity` items, with one supervisor on one side and callers on the other.
pub(super) struct Ring<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    pub wake: Wake,
    capacity: usize,
}

impl<T> Ring<T> {
    pub fn new(capacity: usize) -> Result<Self> {
        let state = State {
            queue: VecDeque::with_capacity(capacity),
            spare: Vec::new(),
            closed: false,
            stopped: false,
            ended: None,
        };
        let wake = Wake::new()?;
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), wake, capacity })
    }

    // The state is consistent after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State<T>>,
        time: Duration,
    ) -> MutexGuard<'a, State<T>> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    // The caller's side.

    /// The next item, `None` after the last.
    pub fn take(&self, patience: Duration) -> Result<Waited<Option<T>>> {
        let mut state = self.lock();
        for attempt in 0..2 {
            if let Some(item) = state.queue.pop_front() {
                self.wake.wake();
                return Ok(Waited::Done(Some(item)));
            }
            if let Some(end) = &mut state.ended {
                return std::mem::replace(end, Ok(())).map(|()| Waited::Done(None));
            }
            if attempt == 0 {
                state = self.wait(state, patience);
            }
        }
        Ok(Waited::NotYet)
    }

    /// A place in the queue: a used item for its memory, if there is one.
    pub fn place(&self, patience: Duration) -> Result<Waited<Option<T>>> {
        let mut state = self.lock();
        for attempt in 0..2 {
            if let Some(end) = &mut state.ended {
                return Err(early_end(std::mem::replace(end, Ok(()))));
            }
            if state.queue.len() < self.capacity {
                return Ok(Waited::Done(state.spare.pop()));
            }
            if attempt == 0 {
                state = self.wait(state, patience);
            }
        }
        Ok(Waited::NotYet)
    }

    /// Fills the place that [`Ring::place`] found.
    pub fn put(&self, item: T) {
        self.lock().queue.push_back(item);
        self.wake.wake();
    }

    /// No more items will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.wake();
    }

    /// The work is to stop now.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.wake.wake();
    }

    /// How the supervisor ended.
    pub fn end(&self, patience: Duration) -> Result<Waited<()>> {
        let mut state = self.lock();
        if state.ended.is_none() {
            state = self.wait(state, patience);
        }
        match &mut state.ended {
            Some(end) => std::mem::replace(end, Ok(())).map(Waited::Done),
            None => Ok(Waited::NotYet),
        }
    }

    // The supervisor's side.

    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Whether there is room for one more, were there `places` of them.
    pub fn has_room(&self, places: usize) -> bool {
        self.lock().queue.len() < self.capacity.min(places)
    }

    /// The next item; `Err` once the caller has closed the queue and it is empty.
    pub fn next(&self) -> std::result::Result<Option<T>, Closed> {
        let mut state = self.lock();
        match state.queue.pop_front() {
            Some(item) => {
                self.changed.notify_all();
                Ok(Some(item))
            }
            None if state.closed => Err(Closed),
            None => Ok(None),
        }
    }

    /// Hands an item to the caller; the supervisor looks for room before.
    pub fn give(&self, item: T) {
        self.lock().queue.push_back(item);
        self.changed.notify_all();
    }

    /// Keeps the memory of an item that is done with.
    pub fn recycle(&self, item: T) {
        let mut state = self.lock();
        if state.spare.len() < self.capacity {
            state.spare.push(item);
        }
    }

    /// A used item, for its memory.
    pub fn spare(&self) -> Option<T> {
        self.lock().spare.pop()
    }

    /// The supervisor's last word.
    pub fn finish(&self, how: Result<()>) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.ended = Some(how);
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// The caller has closed the queue and everything in it is taken.
#[derive(Debug)]
pub(super) struct Closed;

fn early_end(how: Result<()>) -> Error {
    match how {
        Err(error) => error,
        Ok(()) => Error::Exit { how: "has ended and takes no more frames".into(), said: None },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn items_arrive_in_order_and_never_exceed_the_capacity() {
        let ring = Arc::new(Ring::new(3).unwrap());
        let consumer = Arc::clone(&ring);
        let worker = std::thread::spawn(move || {
            let mut seen = Vec::new();
            loop {
                match consumer.next() {
                    Ok(Some(item)) => seen.push(item),
                    Ok(None) => std::thread::yield_now(),
                    Err(Closed) => return seen,
                }
            }
        });
        for item in 0..10_000 {
            assert!(matches!(ring.place(LONG).unwrap(), Waited::Done(_)));
            ring.put(item);
            assert!(ring.lock().queue.len() <= 3);
        }
        ring.close();
        assert_eq!(worker.join().unwrap(), (0..10_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_ring_lets_the_caller_look_up() {
        let ring = Ring::new(1).unwrap();
        assert!(matches!(ring.place(LONG).unwrap(), Waited::Done(None)));
        ring.put(());
        assert!(matches!(ring.place(Duration::from_millis(1)).unwrap(), Waited::NotYet));
        ring.next().unwrap();
        ring.recycle(());
        assert!(matches!(ring.place(LONG).unwrap(), Waited::Done(Some(()))));
    }

    #[test]
    fn what_was_queued_comes_before_the_end() {
        let ring = Ring::new(2).unwrap();
        ring.give(1);
        ring.finish(Err(Error::Cancelled));
        assert!(matches!(ring.take(LONG).unwrap(), Waited::Done(Some(1))));
        assert!(matches!(ring.take(LONG), Err(Error::Cancelled)));
        assert!(matches!(ring.take(LONG).unwrap(), Waited::Done(None)));
    }

    #[test]
    fn a_waiting_caller_is_woken_by_the_end() {
        let ring = Arc::new(Ring::<()>::new(1).unwrap());
        let other = Arc::clone(&ring);
        let worker = std::thread::spawn(move || other.end(LONG).map(|_| ()));
        ring.finish(Err(Error::Cancelled));
        assert!(matches!(worker.join().unwrap(), Err(Error::Cancelled)));
    }
}
