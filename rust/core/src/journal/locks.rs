//! Locks on single bytes of a file, far behind its end, that belong to an open file.
//!
//! Open-file-description locks (`fcntl(2)`, `F_OFD_SETLK`): of two openings of a file only one can
//! hold a byte, in one process or in two, and the kernel lets go when the opening is closed,
//! which the death of its process is. NFS passes them on to its server.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// The byte of item 0: no journal grows to there.
const FIRST: i64 = 1 << 62;
/// The item whose lock is everybody's turn to write.
pub(super) const MUTEX: u64 = (1 << 61) - 1;
/// A writer holds the mutex for one write and one flush; a minute means that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_NAP: Duration = Duration::from_millis(20);

/// Waits for the mutex and takes it.
pub(super) fn take_mutex(file: &File, path: &Path) -> Result<()> {
    let started = Instant::now();
    let mut nap = Duration::from_micros(200);
    while !lease(file, MUTEX, path)? {
        if started.elapsed() > PATIENCE {
            return Err(Error::Journal(format!(
                "{}: another process has kept the journal locked for a minute; end it",
                path.display()
            )));
        }
        thread::sleep(nap);
        nap = (nap * 2).min(LONGEST_NAP);
    }
    Ok(())
}

/// Locks the byte of `item`; false where another opening of the file holds it.
pub(super) fn lease(file: &File, item: u64, path: &Path) -> Result<bool> {
    match set_lock(file, item, libc::F_WRLCK as libc::c_short) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            _ => Err(Error::Journal(format!(
                "{}: the file system offers no locks ({error}); choose a folder on one that does",
                path.display()
            ))),
        },
    }
}

/// Unlocks the byte of `item`.
pub(super) fn release(file: &File, item: u64) -> Result<()> {
    set_lock(file, item, libc::F_UNLCK as libc::c_short)
        .map_err(Error::system("releasing a lock of the journal"))
}

fn set_lock(file: &File, item: u64, kind: libc::c_short) -> io::Result<()> {
    if item > MUTEX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `flock` is plain numbers, for which all zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = FIRST + item as i64;
    lock.l_len = 1;
    loop {
        // SAFETY: `file` is open for the time of the call and `lock` outlives it.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
