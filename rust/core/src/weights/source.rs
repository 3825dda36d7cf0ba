//! Bytes that are read by position: a file, or in tests a slice.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::{Error, Result};

/// Something of known length that is read by position.
pub trait Source {
    /// Bytes in all.
    fn length(&self) -> Result<u64>;

    /// Fills `target` from `offset` on.
    fn fill(&self, offset: u64, target: &mut [u8]) -> Result<()>;
}

impl Source for File {
    fn length(&self) -> Result<u64> {
        Ok(self.metadata().map_err(Error::system("asking for a file's length"))?.len())
    }

    fn fill(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        self.read_exact_at(target, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::checkpoint("the file ends before its content does"),
            _ => Error::Checkpoint(format!("the file cannot be read: {error}")),
        })
    }
}

impl Source for [u8] {
    fn length(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        let range = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(target.len())?;
            self.get(start..end)
        });
        let bytes =
            range.ok_or_else(|| Error::checkpoint("the file ends before its content does"))?;
        target.copy_from_slice(bytes);
        Ok(())
    }
}

/// `length` bytes from `offset` on. The caller has checked the length against a limit.
pub(super) fn bytes_at(
    source: &(impl Source + ?Sized),
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    source.fill(offset, &mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file to read; folders, pipes and devices are refused without waiting for them.
pub fn open_regular(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path).map_err(|error| {
        Error::Checkpoint(format!("{}: cannot be opened: {error}", path.display()))
    })?;
    let kind = file.metadata().map_err(Error::system("asking what a file is"))?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let message = format!("{}: not a regular file; a checkpoint file is needed", path.display());
    Err(Error::Checkpoint(message))
}
