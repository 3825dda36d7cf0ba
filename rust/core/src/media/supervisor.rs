//! The poll loop between one child and the rest.
//!
//! One thread serves standard input, output and error, the child's end, the caller's wishes and
//! the deadline. No read or write blocks, so nothing that a child does, or a grandchild that keeps
//! a pipe, can hold the loop.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::process::Signal;

use super::child::{Child, TICK};
use super::ring::Wake;
use crate::{Error, Result};

/// How much of standard error is kept: its end.
const STDERR_BYTES: usize = 8 << 10;

/// What a source of bytes has to offer.
pub(super) enum Offer<'a> {
    /// These bytes are next.
    Bytes(&'a [u8]),
    /// Nothing yet; the wake will tell.
    Later,
    /// Nothing more.
    End,
}

/// Where the child's standard input comes from.
pub(super) trait Feed {
    /// What there is to send.
    fn offer(&mut self) -> Offer<'_>;
    /// That many of the offered bytes are gone. True where that completes a unit of work, which
    /// gives the child its full time again.
    fn sent(&mut self, count: usize) -> bool;
}

/// No standard input.
impl Feed for () {
    fn offer(&mut self) -> Offer<'_> {
        Offer::End
    }
    fn sent(&mut self, _count: usize) -> bool {
        false
    }
}

/// Where the child's standard output goes.
pub(super) trait Sink {
    /// Whether more can be taken now; the wake tells when that changes.
    fn has_room(&self) -> bool;
    /// Reads once. 0 at the end of the stream.
    fn read(&mut self, from: BorrowedFd<'_>) -> Result<Read>;
    /// The stream has ended and the child has succeeded; `said` is the end of its standard error.
    fn end(&mut self, said: &str) -> Result<()>;
}

/// What one read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Some,
    Nothing,
    End,
}

impl Read {
    pub fn from_result(result: rustix::io::Result<usize>) -> Result<Self> {
        match result {
            Ok(0) => Ok(Self::End),
            Ok(_) => Ok(Self::Some),
            Err(Errno::AGAIN) => Ok(Self::Nothing),
            Err(error) => Err(Error::system("ffmpeg's output could not be read")(error)),
        }
    }
}

/// No standard output.
impl Sink for () {
    fn has_room(&self) -> bool {
        true
    }
    fn read(&mut self, _from: BorrowedFd<'_>) -> Result<Read> {
        Ok(Read::End)
    }
    fn end(&mut self, _said: &str) -> Result<()> {
        Ok(())
    }
}

/// Serves `child` until it has ended, `stopped` says so, or it has made us wait for longer than
/// `patience` in all since the last complete unit of work. On return the child is gone.
pub(super) fn supervise(
    child: Child,
    feed: &mut dyn Feed,
    sink: &mut dyn Sink,
    wake: &Wake,
    stopped: &dyn Fn() -> bool,
    patience: Duration,
) -> Result<()> {
    let said = VecDeque::with_capacity(STDERR_BYTES);
    let mut service = Service { child, wake, said, waited: Duration::ZERO, refused: false };
    service.run(feed, sink, stopped, patience)
}

struct Service<'a> {
    child: Child,
    wake: &'a Wake,
    said: VecDeque<u8>,
    /// For how long the child has owed us something.
    waited: Duration,
    /// It has closed its standard input before everything was sent.
    refused: bool,
}

impl Service<'_> {
    fn run(
        &mut self,
        feed: &mut dyn Feed,
        sink: &mut dyn Sink,
        stopped: &dyn Fn() -> bool,
        patience: Duration,
    ) -> Result<()> {
        let mut ended = false;
        let mut mark = Instant::now();
        loop {
            if stopped() {
                return Err(Error::Cancelled);
            }
            let has_input = self.serve_input(feed);
            let reading = self.child.stdout.is_some() && sink.has_room();
            if ended && (reading || self.child.stdout.is_none()) {
                // All that it wrote is in the pipe; whoever else holds the pipe is not waited for.
                if self.read_once(sink)? != Read::Some {
                    break;
                }
            } else {
                let owes = !ended && self.owes(has_input, reading);
                let limit = owes.then(|| patience.saturating_sub(self.waited));
                let heard = self.listen(has_input, reading, ended, limit)?;
                if !owes {
                    mark = Instant::now();
                }
                if heard.output {
                    self.read_once(sink)?;
                }
                if heard.ended && !ended {
                    self.child.kill_group();
                    ended = true;
                }
            }
            // A whole turn counts, so that endless output runs into the deadline like none at all.
            self.waited += mark.elapsed();
            mark = Instant::now();
            if self.waited >= patience {
                return Err(Error::Deadline { after: patience });
            }
        }
        self.conclude(feed, sink)
    }

    /// Whether it is the child that has to do something next.
    fn owes(&self, has_input: bool, reading: bool) -> bool {
        match (&self.child.stdin, &self.child.stdout) {
            (Some(_), _) => has_input,
            (None, Some(_)) => reading,
            (None, None) => true,
        }
    }

    fn read_once(&mut self, sink: &mut dyn Sink) -> Result<Read> {
        let Some(output) = &self.child.stdout else { return Ok(Read::End) };
        let heard = sink.read(output.as_fd())?;
        if heard == Read::End {
            self.child.stdout = None;
        }
        Ok(heard)
    }

    /// Sends what can be sent without waiting. True where more is there to be sent.
    fn serve_input(&mut self, feed: &mut dyn Feed) -> bool {
        while let Some(input) = &self.child.stdin {
            match feed.offer() {
                Offer::Later => return false,
                Offer::End => {
                    // Copies of the socket in forked processes do not keep it open after this.
                    let _ = shutdown(input, Shutdown::Write);
                    self.child.stdin = None;
                    self.waited = Duration::ZERO;
                }
                Offer::Bytes(bytes) => match send(input, bytes, SendFlags::NOSIGNAL) {
                    Ok(count) => {
                        if feed.sent(count) {
                            self.waited = Duration::ZERO;
                        }
                    }
                    Err(Errno::AGAIN) => return true,
                    Err(Errno::INTR) => {}
                    Err(_) => {
                        self.refused = true;
                        self.child.stdin = None;
                    }
                },
            }
        }
        false
    }

    fn listen(
        &mut self,
        sending: bool,
        reading: bool,
        ended: bool,
        limit: Option<Duration>,
    ) -> Result<Heard> {
        let mut limit = limit;
        if self.child.ended.is_none() && !ended {
            limit = Some(limit.map_or(TICK, |left| left.min(TICK)));
        }
        let child = &self.child;
        let mut fds = vec![PollFd::new(self.wake, PollFlags::IN)];
        watch(&mut fds, child.stdin.as_ref().filter(|_| sending), PollFlags::OUT);
        let output = watch(&mut fds, child.stdout.as_ref().filter(|_| reading), PollFlags::IN);
        let end = watch(&mut fds, child.ended.as_ref().filter(|_| !ended), PollFlags::IN);
        let errors = watch(&mut fds, child.stderr.as_ref(), PollFlags::IN);
        let timeout = limit.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("waiting for ffmpeg failed")(error)),
        }
        let fired = |index: Option<usize>| index.is_some_and(|i| !fds[i].revents().is_empty());
        let (output, end, errors) = (fired(output), fired(end), fired(errors));
        self.wake.clear();
        if errors {
            self.drain_errors();
        }
        let ended = end || (self.child.ended.is_none() && !ended && self.child.has_ended());
        Ok(Heard { output, ended })
    }

    fn drain_errors(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(stderr) = &self.child.stderr {
            match rustix::io::read(stderr, &mut chunk) {
                Ok(count @ 1..) => {
                    let overflow = (self.said.len() + count).saturating_sub(STDERR_BYTES);
                    self.said.drain(..overflow.min(self.said.len()));
                    self.said.extend(&chunk[..count]);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => self.child.stderr = None,
            }
        }
    }

    fn conclude(&mut self, feed: &mut dyn Feed, sink: &mut dyn Sink) -> Result<()> {
        self.drain_errors();
        let status =
            self.child.reap().map_err(Error::system("ffmpeg's status could not be read"))?;
        let heard = String::from_utf8_lossy(self.said.make_contiguous());
        let said = printable(&heard);
        if !status.success() {
            let how = match status.signal().and_then(Signal::from_named_raw) {
                Some(Signal::XCPU) => "used up the processor time it is allowed".into(),
                _ => format!("failed ({status})"),
            };
            return Err(Error::Exit { how, said });
        }
        if self.refused || !matches!(feed.offer(), Offer::End) {
            let how = "stopped reading before the last frame".into();
            return Err(Error::Exit { how, said });
        }
        sink.end(&heard)
    }
}

fn watch<'fd>(
    fds: &mut Vec<PollFd<'fd>>,
    fd: Option<&'fd OwnedFd>,
    flags: PollFlags,
) -> Option<usize> {
    fds.push(PollFd::new(fd?, flags));
    Some(fds.len() - 1)
}

struct Heard {
    output: bool,
    ended: bool,
}

/// The first and last words of what ffmpeg said: no warnings, no `[name @ address]` and no control
/// characters, which could move a terminal's cursor.
fn printable(said: &str) -> Option<String> {
    const FIRST: usize = 300;
    const LAST: usize = 150;
    let mut words: Vec<&str> = Vec::new();
    for word in
        said.lines().filter(|line| !line.contains("[warning]")).flat_map(str::split_whitespace)
    {
        words.push(word);
        match words[..] {
            [.., "[error]" | "[fatal]"] => words.truncate(words.len() - 1),
            [.., name, "@", address] if name.starts_with('[') && address.ends_with(']') => {
                words.truncate(words.len() - 3);
            }
            _ => {}
        }
    }
    let clean: Vec<char> = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    if clean.len() <= FIRST + LAST {
        return (!clean.is_empty()).then(|| clean.iter().collect());
    }
    let (first, last) = (&clean[..FIRST], &clean[clean.len() - LAST..]);
    Some(first.iter().chain(&[' ', '.', '.', '.', ' ']).chain(last).collect())
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_ffmpeg_said_is_safe_to_print() {
        assert_eq!(printable(""), None);
        assert_eq!(printable(" \n\t"), None);
        assert_eq!(printable("bad\x1b[2J  file\n"), Some("bad[2J file".into()));
        let long = printable(&format!("first {} last", "x".repeat(5000))).unwrap();
        assert!(long.starts_with("first x") && long.ends_with("x last") && long.len() == 455);
        let said = "[dec:png @ 0x55fc] [vist#0:0/png @ 0x1f] [error] bad [thing]\n\
                    [graph -1 @ 0x7f] [warning] never mind\n[fatal] worse";
        assert_eq!(printable(said), Some("bad [thing] worse".into()));
    }
}
