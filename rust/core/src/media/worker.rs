//! The thread that starts a child and serves it to its end.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use super::child::{Child, Ends, Program};
use super::ring::Ring;
use crate::{Error, Result};

/// How long a start may take before the caller goes on without knowing: a program on a dead
/// network drive.
const START: Duration = Duration::from_secs(1);

/// A thread with one child, stopped and waited for when this value goes.
pub(super) struct Worker<T: Send + 'static> {
    pub ring: Arc<Ring<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `program` and serves it with `serve`.
    ///
    /// Returns when the child is running or has failed to start. The standard library waits for
    /// that on a pipe; were the host to fork meanwhile, its child would hold that pipe open and us
    /// up. A caller that holds the interpreter lock keeps Python from forking just then.
    pub fn start(
        name: &str,
        program: Program,
        ends: Ends,
        ring: Ring<T>,
        serve: impl FnOnce(Child, &Ring<T>) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let ring = Arc::new(ring);
        let theirs = Arc::clone(&ring);
        let (tell, started) = channel();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let child = Child::start(program, ends);
                drop(tell);
                theirs.finish(child.and_then(|child| serve(child, &theirs)));
            })
            .map_err(Error::system("a thread could not be started"))?;
        // Nothing is ever sent: the wait ends when the other side is dropped.
        let _ = started.recv_timeout(START) as std::result::Result<(), _>;
        Ok(Self { ring, thread: Some(thread) })
    }

    /// Ends the child now and waits for its end.
    pub fn stop(&mut self) {
        self.ring.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in that thread has been reported by its hook.
            let _ = thread.join();
        }
    }
}

impl<T: Send + 'static> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop();
    }
}
