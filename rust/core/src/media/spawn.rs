//! Starts a program without copying this process.
//!
//! `std::process::Command` forks where something has to be done between fork and exec, and a fork
//! copies the page tables of everything that is mapped: tens of milliseconds in a process that has
//! torch's libraries, three times a clip, and every page that this process then writes faults once
//! more. Here the child borrows the memory of its parent, which stands still until the child has
//! become another program, as `posix_spawn` does it.

use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, WaitOptions, waitpid};

/// What every child finds programs by.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const ENVIRONMENT: [&str; 2] = ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"];
/// 64 KiB, aligned as every platform wants a stack to be.
const STACK: usize = 4096;
const SIGNALS: c_int = 64;

/// What the child reads of its parent's memory, and where it leaves why it failed.
struct Plan<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    environment: *const *const c_char,
    /// Its standard input, output and error; above 2.
    streams: [RawFd; 3],
    prepare: &'a dyn Fn() -> rustix::io::Result<()>,
    failure: AtomicI32,
}

/// Starts a program in a process group of its own, in the root folder, with signals as they are by
/// default and no environment but a fixed PATH and LANG.
///
/// # Arguments
///
/// * `streams`: its standard input, output and error.
/// * `prepare`: runs in the child, last before exec. It shares the memory of this process, where
///   other threads go on: it may make system calls, and neither allocate nor take a lock.
pub(super) fn spawn(
    argv: &[OsString],
    streams: [OwnedFd; 3],
    prepare: &dyn Fn() -> rustix::io::Result<()>,
) -> io::Result<Pid> {
    let name = argv.first().ok_or(io::ErrorKind::InvalidInput)?;
    let program = text(found(name)?.as_os_str())?;
    let arguments = argv.iter().map(|one| text(one)).collect::<io::Result<Vec<_>>>()?;
    let environment = ENVIRONMENT.map(CString::new);
    let mut pointers: Vec<_> = arguments.iter().map(|one| one.as_ptr()).collect();
    pointers.push(null());
    let mut variables: Vec<_> = environment.iter().flatten().map(|one| one.as_ptr()).collect();
    variables.push(null());
    // Above 2, so that none is overwritten before it has been put in its place.
    let [input, output, errors] = streams;
    let raised = [
        fcntl_dupfd_cloexec(&input, 3)?,
        fcntl_dupfd_cloexec(&output, 3)?,
        fcntl_dupfd_cloexec(&errors, 3)?,
    ];
    let plan = Plan {
        program: program.as_ptr(),
        argv: pointers.as_ptr(),
        environment: variables.as_ptr(),
        streams: raised.each_ref().map(AsRawFd::as_raw_fd),
        prepare,
        failure: AtomicI32::new(0),
    };
    let pid = borrowed(&plan)?;
    match plan.failure.load(Ordering::Relaxed) {
        0 => Ok(pid),
        failure => {
            let _ = waitpid(Some(pid), WaitOptions::empty()); // it has ended: nothing to wait for
            Err(io::Error::from_raw_os_error(failure))
        }
    }
}

/// Returns once the child is another program, or has ended.
fn borrowed(plan: &Plan<'_>) -> io::Result<Pid> {
    let mut stack = vec![0_u128; STACK];
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: signal sets are plain memory that the calls fill. The flags stop this thread until
    // the child has let go of the memory: stack, plan and what it points to outlive its use of
    // them. No handler of this process can run in the child, as all signals are blocked in it
    // until it has set them aside.
    let pid = unsafe {
        let mut all: libc::sigset_t = zeroed();
        let mut before: libc::sigset_t = zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let argument = (&raw const *plan).cast_mut().cast::<c_void>();
        let pid = libc::clone(child, top.cast(), flags, argument);
        let failure = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
        if pid < 0 {
            return Err(failure);
        }
        pid
    };
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::Other.into())
}

/// The child, on a stack of its own in its parent's memory.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `borrowed` keeps the plan for as long as this runs.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    plan.failure.store(become_program(plan), Ordering::Relaxed);
    // SAFETY: ends this process alone, without running what its parent has registered.
    unsafe { libc::_exit(127) }
}

/// Returns where it fails, with the system's reason.
fn become_program(plan: &Plan<'_>) -> c_int {
    // SAFETY: system calls on this process's own descriptors, folder, group and signals, which
    // are its own already; strings and lists that end with a null.
    unsafe {
        for (stream, place) in plan.streams.iter().zip(0..) {
            if libc::dup2(*stream, place) < 0 {
                return failure();
            }
        }
        if libc::chdir(c"/".as_ptr()) < 0 || libc::setpgid(0, 0) < 0 {
            return failure();
        }
        if let Err(error) = (plan.prepare)() {
            return error.raw_os_error();
        }
        signals_by_default();
        libc::execvpe(plan.program, plan.argv, plan.environment);
        failure()
    }
}

/// No handler of the parent, which would run in its memory; what it ignores stays ignored, but for
/// SIGPIPE, which Python ignores and programs expect to end by. Then no signal is blocked.
///
/// # Safety
///
/// Only in a process that is about to become another program.
unsafe fn signals_by_default() {
    // SAFETY: plain memory, filled by the calls; numbers without a signal are refused.
    unsafe {
        for number in 1..=SIGNALS {
            let mut action: libc::sigaction = zeroed();
            if libc::sigaction(number, null(), &raw mut action) == 0
                && (action.sa_sigaction != libc::SIG_IGN || number == libc::SIGPIPE)
            {
                action = zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(number, &raw const action, null_mut());
            }
        }
        let mut none: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, null_mut());
    }
}

fn failure() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// The program's file: `name` itself where it is a path.
fn found(name: &OsStr) -> io::Result<std::path::PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let mut places = PATH.split(':').map(|folder| Path::new(folder).join(name));
    places.find(|path| path.is_file()).ok_or_else(|| Errno::NOENT.into())
}

fn text(value: &OsStr) -> io::Result<CString> {
    CString::new(value.as_bytes()).map_err(Into::into)
}
