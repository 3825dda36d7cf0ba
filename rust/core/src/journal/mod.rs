//! A journal that several processes append to and that survives all of them being killed.
//!
//! A record is on disk, whole and checksummed, before `append` returns. What a killed writer left
//! unfinished at the end is ignored by readers and cut off by the next writer; damage elsewhere
//! costs the records it hit and no others: nothing is taken for a torn end while a whole record
//! stands behind it. Locks are the kernel's: they end with their process.

mod locks;
mod record;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use self::locks::{MUTEX, lease, release, take_mutex};
use self::record::{HEADER, Scan};
pub use self::record::{LARGEST, VERSION};
use crate::{Error, Result};

/// Bytes that are looked at in one go; several of the largest records.
const BLOCK: usize = 1 << 20;

/// One journal, opened. Dropping it ends its leases.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Byte behind the last record that was scanned.
    scanned: u64,
    /// Scanned, and not handed out yet.
    pending: VecDeque<Vec<u8>>,
    damaged: u64,
    locked: bool,
}

impl Journal {
    /// Opens a journal, or starts an empty one.
    ///
    /// With `fresh` there must be none yet; without, an existing one is taken up.
    pub fn open(path: &Path, fresh: bool) -> Result<Self> {
        let mut options = File::options();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).write(true).mode(0o644).custom_flags(flags.bits().cast_signed());
        if fresh {
            options.create_new(true)
        } else {
            options.create(true)
        };
        let file = options.open(path).map_err(|error| {
            let cure = match error.kind() {
                ErrorKind::AlreadyExists => "; resume it, or remove it to start anew",
                ErrorKind::NotFound => "; make its folder first",
                _ => "",
            };
            Error::Argument(format!("{}: no journal can be opened: {error}{cure}", path.display()))
        })?;
        let kind = file.metadata().map_err(Error::system("asking what the journal is"))?;
        if !kind.is_file() {
            return Err(Error::Argument(format!("{}: not a regular file", path.display())));
        }
        let journal = Self {
            path: path.to_owned(),
            file,
            scanned: HEADER as u64,
            pending: VecDeque::new(),
            damaged: 0,
            locked: false,
        };
        take_mutex(&journal.file, &journal.path)?;
        let checked = journal.check_header();
        release(&journal.file, MUTEX)?;
        checked.map(|()| journal)
    }

    /// Writes the header where the file is new, otherwise sees that it is ours.
    fn check_header(&self) -> Result<()> {
        let mut start = [0; HEADER];
        let known = self.fill(0, &mut start)?;
        let expected = record::header();
        if known < HEADER && expected.starts_with(&start[..known]) {
            // New, or its maker was killed in the middle of these bytes.
            self.write(0, &expected)?;
            self.file.sync_all().map_err(Error::system("flushing the journal"))?;
            return sync_folder(&self.path);
        }
        record::check_header(&start[..known]).map_err(|why| {
            Error::Argument(format!("{}: {why}; name another folder", self.path.display()))
        })
    }

    /// Records that were appended, by anyone, since the last call; in order.
    pub fn read(&mut self) -> Result<Vec<Vec<u8>>> {
        self.catch_up(self.locked)?;
        Ok(self.pending.drain(..).collect())
    }

    /// Appends records, all in one write; they come back from [`Journal::read`] as well.
    ///
    /// With `sync` they are on disk when this returns.
    pub fn append(&mut self, payloads: &[Vec<u8>], sync: bool) -> Result<()> {
        let mut bytes = Vec::new();
        for payload in payloads {
            record::encode(payload, &mut bytes)?;
        }
        if self.locked {
            return self.append_locked(&bytes, sync);
        }
        take_mutex(&self.file, &self.path)?;
        let appended = self.append_locked(&bytes, sync);
        release(&self.file, MUTEX).and(appended)
    }

    fn append_locked(&mut self, bytes: &[u8], sync: bool) -> Result<()> {
        self.catch_up(true)?;
        let end = self.scanned;
        if self.length()? > end {
            // Nobody writes now: what follows the last whole record is a dead writer's.
            self.file.set_len(end).map_err(Error::system("cutting the journal's torn end"))?;
        }
        let written = self.write(end, bytes).and_then(|()| {
            if sync { self.file.sync_data() } else { Ok(()) }
                .map_err(Error::system("flushing the journal"))
        });
        if written.is_err() {
            // What did not reach the disk must not be read as if it had.
            self.file.set_len(end).map_err(Error::system("cutting the journal's torn end"))?;
        }
        written
    }

    /// Takes the journal for this process alone: nobody else appends or leases in between.
    pub fn lock(&mut self) -> Result<()> {
        if self.locked {
            return Err(Error::argument("the journal is locked by this process already"));
        }
        take_mutex(&self.file, &self.path)?;
        self.locked = true;
        Ok(())
    }

    /// Ends [`Journal::lock`]; does nothing where there is none.
    pub fn unlock(&mut self) -> Result<()> {
        if std::mem::take(&mut self.locked) { release(&self.file, MUTEX) } else { Ok(()) }
    }

    /// Takes item number `item`, unless somebody else has it. The kernel gives it back when this
    /// journal is dropped or its process ends, in whatever way.
    pub fn lease(&self, item: u64) -> Result<bool> {
        lease(&self.file, item, &self.path)
    }

    /// Gives an item back.
    pub fn release(&self, item: u64) -> Result<()> {
        release(&self.file, item)
    }

    /// Bytes so far that belonged to no whole record and were passed over.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Scans what was appended since the last time; `alone` where the mutex is held.
    fn catch_up(&mut self, alone: bool) -> Result<()> {
        let mut block = vec![0; BLOCK];
        loop {
            let known = self.fill(self.scanned, &mut block)?;
            let (used, scan) = self.take_records(&block[..known]);
            self.scanned += used as u64;
            match scan {
                Scan::Short if known == block.len() => {}
                Scan::End => return Ok(()),
                // At a short one a writer is at work, or died, or the length it tells is damaged.
                Scan::Short | Scan::Damaged if !self.pass_over(alone)? => return Ok(()),
                Scan::Short | Scan::Damaged => {}
            }
        }
    }

    /// Queues the whole records at the start of `block`; how many bytes they take, what follows.
    fn take_records(&mut self, block: &[u8]) -> (usize, Scan) {
        let mut used = 0;
        loop {
            match record::decode(&block[used..]) {
                Ok((payload, length)) => {
                    self.pending.push_back(payload.to_vec());
                    used += length;
                }
                Err(scan) => return (used, scan),
            }
        }
    }

    /// Moves to the next whole record; false where there is none, so that this is a torn end.
    fn pass_over(&mut self, alone: bool) -> Result<bool> {
        if alone {
            return self.pass_over_alone();
        }
        // While others write, bytes that were read one after the other need never have stood
        // beside each other: a record that is only being written would be passed over for good.
        take_mutex(&self.file, &self.path)?;
        let moved = self.pass_over_alone();
        release(&self.file, MUTEX).and(moved)
    }

    fn pass_over_alone(&mut self) -> Result<bool> {
        let length = self.length()?.saturating_sub(self.scanned);
        let mut rest = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let known = self.fill(self.scanned, &mut rest)?;
        let Some(skipped) = record::next_record(&rest[..known]) else { return Ok(false) };
        self.scanned += skipped as u64;
        self.damaged += skipped as u64;
        Ok(true)
    }

    fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(Error::system("asking for the journal's length"))?.len())
    }

    /// Reads from `offset` until `target` is full or the file ends; the number of bytes read.
    fn fill(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        let mut known = 0;
        while known < target.len() {
            match self.file.read_at(&mut target[known..], offset + known as u64) {
                Ok(0) => break,
                Ok(read) => known += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("reading the journal")(error)),
            }
        }
        Ok(known)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(Error::system("writing the journal"))
    }
}

/// A new file is only there for good when its folder says so.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(Error::system("flushing the journal's folder"))
}
