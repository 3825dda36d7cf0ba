//! Starts a program without copying this process.
//!
//! `std::process::Command` forks where something has to be done between fork and exec, and a fork
//! copies the page tables of everything that is mapped: tens of milliseconds in a process that has
//! torch's libraries, three times a clip, and every page that this process then writes faults once
//! more. Here the child borrows the memory of its parent, which stands still until the child has
//! become another program, as `posix_spawn` does it.

use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::process::{Pid, WaitOptions, waitpid};

/// What every child finds programs by.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const ENVIRONMENT: [&str; 2] = ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"];
/// 64 KiB, aligned as every platform wants a stack to be; signals, which could need more, wait.
const STACK: usize = 4096;
const SIGNALS: c_int = 64;
/// What the kernel, unlike the C library, calls a set of 64 signals.
const SIGNAL_SET: usize = size_of::<u64>();

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
/// * `prepare`: runs in the child, last before exec.
///
/// # Safety
///
/// `prepare` has the memory of this process, where other threads go on, and the thread-locals of
/// this thread: it may make system calls, and neither allocate, take a lock nor panic. What it
/// leaves undone stays so: the child may be killed anywhere.
pub(super) unsafe fn spawn(
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
    let pid = borrowed(&plan, argv.len())?;
    match plan.failure.load(Ordering::Relaxed) {
        0 => Ok(pid),
        failure => {
            // It is about to end, if it has not: it lets go of the memory first. A handler of this
            // process may come between, and a zombie is not to stay.
            let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
            Err(io::Error::from_raw_os_error(failure))
        }
    }
}

/// Returns once the child is another program, or has ended.
fn borrowed(plan: &Plan<'_>, arguments: usize) -> io::Result<Pid> {
    // `execvpe` copies the list of arguments to the stack where a shell has to read the program.
    let mut stack = vec![0_u128; STACK + arguments];
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the flags stop this thread until the child has let go of the memory: stack, plan and
    // what it points to outlive its use of them. The child has this thread's locals; of those it
    // writes errno alone, which is read only where there is no child. No handler of this process
    // can run in the child, as all signals are blocked in it until it has set them aside.
    let pid = unsafe {
        let before = set_mask(u64::MAX);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let argument = (&raw const *plan).cast_mut().cast::<c_void>();
        let pid = libc::clone(child, top.cast(), flags, argument);
        let failure = io::Error::last_os_error();
        set_mask(before);
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
    // The kernel's own calls: the C library's leave out the two signals that it handles itself,
    // and newer ones take a lock for SIGABRT, which a child that is killed would never give back.
    // SAFETY: what the kernel knows of a signal, its handler first, is less than eight words, and
    // all zero by default; numbers without a signal are refused.
    unsafe {
        for number in 1..=SIGNALS {
            let mut action = [0_usize; 8];
            let (new, old) = (null::<usize>(), action.as_mut_ptr());
            libc::syscall(libc::SYS_rt_sigaction, number, new, old, SIGNAL_SET);
            let kept = action[0] == libc::SIG_IGN && number != libc::SIGPIPE;
            if action[0] != libc::SIG_DFL && !kept {
                let (new, old) = ([0_usize; 8], null_mut::<usize>());
                libc::syscall(libc::SYS_rt_sigaction, number, new.as_ptr(), old, SIGNAL_SET);
            }
        }
        set_mask(0);
    }
}

/// Blocks the signals whose bit is set in this thread, those of the C library too; returns which
/// were blocked.
///
/// # Safety
///
/// The C library waits for its own signals: not for long, and to be undone.
unsafe fn set_mask(blocked: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: the kernel reads and writes one set each.
    unsafe {
        let (new, old) = (&raw const blocked, &raw mut before);
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, SIGNAL_SET);
    }
    before
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::AtomicUsize;

    use rustix::process::WaitStatus;

    use super::*;

    fn ending(argv: &[OsString], prepare: &dyn Fn()) -> WaitStatus {
        let streams = [(); 3].map(|()| File::options().write(true).open("/dev/null").unwrap());
        let prepare = || {
            prepare();
            Ok(())
        };
        // SAFETY: the tests below prepare by system calls.
        let pid = unsafe { spawn(argv, streams.map(Into::into), &prepare) }.unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1
    }

    #[test]
    fn no_handler_of_this_process_runs_in_the_child() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn count(_: c_int) {
            RUNS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handler may run anywhere.
        unsafe { libc::signal(libc::SIGUSR1, count as *const () as libc::sighandler_t) };
        // 33 is the C library's own: it handles it in every process that has threads.
        for signal in [libc::SIGUSR1, 33] {
            let raise = || {
                // SAFETY: a signal to the child itself.
                unsafe { libc::syscall(libc::SYS_kill, libc::getpid(), signal) };
            };
            let status = ending(&["/bin/true".into()], &raise);
            assert_eq!(status.terminating_signal(), Some(signal), "{status:?}");
        }
        assert_eq!(RUNS.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_stack_holds_the_arguments_of_a_script_that_does_not_name_its_shell() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, "exit $(($# - 100000 + 7))").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mut argv = vec![OsString::from("a"); 100_001];
        argv[0] = script.into();
        assert_eq!(ending(&argv, &|| ()).exit_status(), Some(7));
    }
}
