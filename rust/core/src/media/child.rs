//! One child process: started with nothing it does not need, ended for certain.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, getrlimit,
    kill_process_group, pidfd_open, set_parent_process_death_signal, setrlimit, waitid, waitpid,
};

use super::spawn::spawn;
use crate::{Error, Result};

/// The largest pipe an unprivileged process may have.
const PIPE_BYTES: usize = 1 << 20;
/// How long a child may take to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_millis(300);
/// How long a killed child may take to disappear: only a hung file system takes that long.
const BURIAL: Duration = Duration::from_secs(5);
/// How often a child is asked whether it has ended where the kernel cannot say so by itself.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// What a child may use; `None` leaves the limit of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Address space in bytes.
    pub memory: Option<u64>,
    /// Processor time in seconds.
    pub cpu_seconds: Option<u64>,
    /// Size in bytes of any file it writes.
    pub file: Option<u64>,
}

/// What to start: no shell, no inherited descriptors, no environment but a fixed PATH and LANG.
#[derive(Debug)]
pub struct Program {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// Standard input, where it is a file; otherwise it is fed, or empty.
    pub stdin: Option<OwnedFd>,
    /// Standard output, where it is a file; otherwise it is read, or discarded.
    pub stdout: Option<OwnedFd>,
    /// What it may use.
    pub limits: Limits,
}

/// Which ends of the child's standard streams this process holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Feed its standard input.
    pub feed: bool,
    /// Read its standard output.
    pub read: bool,
}

/// A running child. Dropping it kills it and everything it started.
pub(super) struct Child {
    pid: Pid,
    /// Becomes readable when the process ends; absent on kernels before 5.3.
    pub ended: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    reaped: bool,
}

impl Child {
    /// Starts `program`. Must be called on the thread that will wait for it: the kernel kills the
    /// child when the *thread* that started it ends.
    pub fn start(program: Program, ends: Ends) -> Result<Self> {
        let Program { argv, stdin, stdout, limits } = program;
        let name = argv.first().ok_or_else(|| Error::argument("an empty command line"))?;
        let (errors, stderr) = readable_pipe()?;
        let (input, stdin) = match (stdin, ends.feed) {
            (Some(file), _) => (file, None),
            (None, true) => fed_socket().map(|(theirs, ours)| (theirs, Some(ours)))?,
            (None, false) => (nowhere()?, None),
        };
        let (output, stdout) = match (stdout, ends.read) {
            (Some(file), _) => (file, None),
            (None, true) => readable_pipe().map(|(theirs, ours)| (theirs, Some(ours)))?,
            (None, false) => (nowhere()?, None),
        };

        let parent = rustix::process::getpid();
        // SAFETY: what `prepare` does is system calls and sums that cannot overflow.
        let pid = unsafe { spawn(&argv, [input, output, errors], &|| prepare(parent, limits)) }
            .map_err(|source| Error::Spawn { program: PathBuf::from(name), source })?;
        let ended = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Self { pid, ended, stdin, stdout, stderr: Some(stderr), reaped: false })
    }

    /// Whether the process has ended; it stays a zombie, so that its number keeps its meaning.
    pub fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), options), Ok(Some(_)) | Err(_))
    }

    /// Kills what the process has started and left behind.
    pub fn kill_group(&self) {
        self.signal_group(Signal::KILL);
    }

    /// Kills what the ended process left behind, and takes its status.
    pub fn reap(&mut self) -> io::Result<ExitStatus> {
        self.kill_group();
        self.reaped = true;
        let found = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()))?;
        let (_, status) = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(ExitStatus::from_raw(status.as_raw()))
    }

    /// Ends the process: politely, then for certain.
    pub fn stop(&mut self) {
        if self.reaped {
            return;
        }
        self.stdin = None;
        self.stdout = None;
        self.signal_group(Signal::TERM);
        if !self.wait_until_ended(GRACE) {
            self.signal_group(Signal::KILL);
            if !self.wait_until_ended(BURIAL) {
                return;
            }
        }
        // The status of a process that was told to end says nothing.
        let _ = self.reap();
    }

    fn signal_group(&self, signal: Signal) {
        if !self.reaped {
            // The group may have emptied by itself.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    fn wait_until_ended(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.has_ended() {
                return true;
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else {
                return false;
            };
            match &self.ended {
                Some(ended) => {
                    let mut fds = [PollFd::new(ended, PollFlags::IN)];
                    let timeout = Timespec::try_from(left).unwrap_or_default();
                    // An interrupted wait is taken up again by the loop.
                    let _ = poll(&mut fds, Some(&timeout));
                }
                None => std::thread::sleep(TICK.min(left)),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// In the child, before exec, in the memory of this process: system calls only.
fn prepare(parent: Pid, limits: Limits) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(Errno::PIPE); // the parent died before the line above
    }
    lower(Resource::Core, 0)?;
    for (resource, limit) in [
        (Resource::As, limits.memory),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Fsize, limits.file),
    ] {
        if let Some(limit) = limit {
            lower(resource, limit)?;
        }
    }
    // Descriptors that other libraries opened without CLOEXEC. A kernel before 5.11 refuses; the
    // child then sees them, as any child of that process does.
    // SAFETY: the call marks descriptors and touches no memory.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

fn lower(resource: Resource, limit: u64) -> rustix::io::Result<()> {
    let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = limit.min(allowed);
    // Processor time ends with SIGXCPU, which says why, and a second later with SIGKILL.
    let last = if resource == Resource::Cpu { limit.saturating_add(1).min(allowed) } else { limit };
    setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(last) })
}

/// Nothing to read, and what is written goes nowhere.
fn nowhere() -> Result<OwnedFd> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("/dev/null could not be opened"))
}

fn readable_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("a pipe could not be opened"))?;
    // A smaller pipe works too, only slower.
    let _ = fcntl_setpipe_size(&ours, PIPE_BYTES);
    set_nonblocking(ours.as_fd())?;
    Ok((theirs, ours))
}

/// A socket and not a pipe: its end can be announced even while a forked child of the host program
/// still holds a copy of our side.
fn fed_socket() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(Error::system("a socket could not be opened"))?;
    set_nonblocking(ours.as_fd())?;
    Ok((theirs, ours))
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)
        .map_err(Error::system("a pipe could not be made non-blocking"))
}
